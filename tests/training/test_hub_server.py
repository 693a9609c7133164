"""The stand-in for the Hub, with the real client: what is written is read back, and what is refused is told as ever."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session, http_backoff
from safetensors.torch import load_file, save_file

REPO = "me/model"
BROKEN = http_backoff.__kwdefaults__["retry_on_exceptions"]  # what the client takes for a broken connection
FILES = {"README.md": b"---\nlicense: mit\n---\nA model\n", "config/a.json": b"{}", "config/deep/b.json": b"[]"}


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture
def anonymous(hub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=False)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A text file and a file of weights, which goes to large file storage."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 4}')
    save_file({"weight": torch.arange(1000.0)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def repo(api) -> str:
    return api.create_repo(REPO).repo_id


def contents(folder: Path) -> dict[str, bytes]:
    """What a folder holds, by file name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def posted(hub, name: str) -> int:
    """How many requests were sent to such an address."""
    return sum(name in request.path for request in hub.requests)


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_what_is_pushed_is_read_back(hub, api, anonymous, folder, tmp_path, repo_type):
    repo = api.create_repo("mine", repo_type=repo_type).repo_id
    assert repo == "me/mine", "the namespace is the token's owner"
    commit = api.upload_folder(repo_id=repo, folder_path=folder, repo_type=repo_type)
    assert hub.files(repo, repo_type=repo_type) == contents(folder) == hub.files(repo, commit.oid, repo_type)
    puts = [request for request in hub.requests if request.method == "PUT"]
    assert len(puts) == 1 and not puts[0].token, "only the weights, and to storage that must not see the token"
    snapshot = Path(anonymous.snapshot_download(repo, repo_type=repo_type))
    assert snapshot.name == commit.oid and contents(snapshot) == contents(folder)
    weights = anonymous.hf_hub_download(repo, "model.safetensors", repo_type=repo_type, cache_dir=tmp_path / "empty")
    assert load_file(weights)["weight"].equal(torch.arange(1000.0))


def test_a_second_push_sends_only_what_changed(hub, api, repo, folder):
    first = api.upload_folder(repo_id=repo, folder_path=folder)
    again = api.upload_folder(repo_id=repo, folder_path=folder)
    assert again.oid == first.oid and posted(hub, "/commit/") == 1, "nothing changed: no commit"
    save_file({"weight": torch.ones(2)}, folder / "model.safetensors")
    changed = api.upload_folder(repo_id=repo, folder_path=folder, delete_patterns="*.json")
    assert changed.oid != first.oid and hub.files(repo) == contents(folder)
    assert load_file(folder / "model.safetensors")["weight"].numel() == 2
    api.delete_file("config.json", repo)
    assert set(hub.files(repo)) == {"model.safetensors"} and "config.json" in hub.files(repo, first.oid)


def test_create_again(api, repo):
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(repo)
    assert api.create_repo(repo, exist_ok=True).repo_id == repo


def test_branches(hub, api, anonymous):
    hub.add(REPO, FILES)
    api.create_branch(REPO, branch="try/one")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(REPO, branch="try/one")
    api.create_branch(REPO, branch="try/one", exist_ok=True)
    api.upload_file(path_or_fileobj=b"new", path_in_repo="new.txt", repo_id=REPO, revision="try/one")
    assert hub.files(REPO, "try/one") == FILES | {"new.txt": b"new"} and hub.files(REPO) == FILES
    path = anonymous.hf_hub_download(REPO, "new.txt", revision="try/one")
    assert Path(path).read_bytes() == b"new"
    api.create_branch(REPO, branch="two", revision="try/one")
    assert hub.files(REPO, "two") == hub.files(REPO, "try/one")
    heads = {branch.name: branch.target_commit for branch in anonymous.list_repo_refs(REPO).branches}
    assert heads == {name: anonymous.model_info(REPO, revision=name).sha for name in ("main", "try/one", "two")}


def test_listings(hub, api, anonymous):
    hub.add(REPO, FILES)
    assert anonymous.list_repo_files(REPO) == list(FILES)
    assert {entry.path for entry in anonymous.list_repo_tree(REPO)} == {"README.md", "config"}
    inside = anonymous.list_repo_tree(REPO, "config", recursive=True)
    assert {entry.path for entry in inside} == {"config/a.json", "config/deep", "config/deep/b.json"}
    sizes = {
        entry.path: getattr(entry, "size", None) for entry in anonymous.get_paths_info(REPO, ["config", "README.md"])
    }
    assert sizes == {"config": None, "README.md": len(FILES["README.md"])}
    api.delete_folder("config", REPO)
    assert set(hub.files(REPO)) == {"README.md"}


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda api: api.model_info("me/nothing"), RepositoryNotFoundError),
        (lambda api: api.dataset_info(REPO), RepositoryNotFoundError),
        (lambda api: api.model_info("model"), RepositoryNotFoundError),
        (lambda api: api.hf_hub_download("model", "README.md"), RepositoryNotFoundError),
        (lambda api: api.hf_hub_download("me/nothing", "README.md"), RepositoryNotFoundError),
        (lambda api: api.upload_file(path_or_fileobj=b"", path_in_repo="a", repo_id="me/no"), RepositoryNotFoundError),
        (lambda api: api.model_info(REPO, revision="v2"), RevisionNotFoundError),
        (lambda api: api.hf_hub_download(REPO, "README.md", revision="v2"), RevisionNotFoundError),
        (
            lambda api: api.upload_file(path_or_fileobj=b"", path_in_repo="a", repo_id=REPO, revision="v2"),
            RevisionNotFoundError,
        ),
        (lambda api: api.hf_hub_download(REPO, "pytorch_model.bin"), EntryNotFoundError),
        (lambda api: list(api.list_repo_tree(REPO, "absent")), EntryNotFoundError),
        (lambda api: api.delete_file("absent", REPO), EntryNotFoundError),
    ],
)
def test_what_is_not_there_is_the_clients_own_error(hub, api, call, error):
    hub.add(REPO, FILES)
    with pytest.raises(error):
        call(api)
    assert hub.files(REPO) == FILES


def test_a_wrong_token_is_refused(hub, api, folder):
    hub.add(REPO, FILES)
    wrong = HfApi(endpoint=hub.endpoint, token="hf_wrong")
    for call in (
        lambda: wrong.whoami(),
        lambda: wrong.create_repo("me/other"),
        lambda: wrong.create_repo(REPO, exist_ok=True),
        lambda: wrong.upload_folder(repo_id=REPO, folder_path=folder),
        lambda: wrong.create_branch(REPO, branch="b"),
        lambda: wrong.model_info(REPO),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            call()
        assert caught.value.response.status_code == 401 and type(caught.value) is HfHubHTTPError
    assert api.whoami()["name"] == "me" and hub.files(REPO) == FILES and list(hub.repositories) == [("model", REPO)]


def test_nothing_is_written_without_a_token(hub, anonymous, folder):
    hub.add(REPO, FILES)
    with pytest.raises(HfHubHTTPError, match="Invalid username or password"):
        anonymous.create_repo("me/other")
    for call in (
        lambda: anonymous.upload_folder(repo_id=REPO, folder_path=folder),
        lambda: anonymous.create_branch(REPO, branch="b"),
    ):
        with pytest.raises(RepositoryNotFoundError):
            call()
    assert hub.files(REPO) == FILES and not any(request.token for request in hub.requests)


def test_a_private_repository_is_for_its_owner(hub, api, anonymous):
    api.create_repo(REPO, private=True)
    api.upload_file(path_or_fileobj=b"secret", path_in_repo="a.txt", repo_id=REPO)
    with pytest.raises(RepositoryNotFoundError):
        anonymous.hf_hub_download(REPO, "a.txt")
    with pytest.raises(RepositoryNotFoundError):
        anonymous.snapshot_download(REPO)
    assert api.model_info(REPO).private
    assert Path(api.hf_hub_download(REPO, "a.txt")).read_bytes() == b"secret"


def test_storage_checks_what_it_is_sent(hub):
    """Only content that was announced with a token, and that has the hash it was announced with."""
    oid = "0" * 64
    address = f"{hub.endpoint}/large-files/{oid}"
    assert get_session().put(address, content=b"x").status_code == 403
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": 1}]}
    hub.add(REPO, {})
    announce = f"{hub.endpoint}/{REPO}.git/info/lfs/objects/batch"
    assert get_session().post(announce, json=batch).status_code == 401
    answer = get_session().post(announce, json=batch, headers={"Authorization": f"Bearer {hub.token}"})
    assert answer.json()["objects"][0]["actions"]["upload"]["href"] == address
    assert get_session().put(address, content=b"x").status_code == 400 and not hub.large_files


def test_a_commit_of_absent_content_changes_nothing(hub, api, folder, monkeypatch):
    hub.add(REPO, FILES)
    monkeypatch.setattr("huggingface_hub._commit_api.lfs_upload", lambda **_: None)
    with pytest.raises(BadRequestError, match="not uploaded"):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.files(REPO) == FILES


def test_a_connection_broken_in_the_weights(hub, api, folder):
    hub.add(REPO, FILES)
    hub.break_on("PUT", after=100)
    with pytest.raises(RuntimeError, match="uploading 'model.safetensors'") as caught:
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert isinstance(caught.value.__cause__, BROKEN)
    assert posted(hub, "/large-files/") == 6, "the client tries six times"
    assert hub.files(REPO) == FILES and not hub.large_files and not posted(hub, "/commit/")
    hub.mend()
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.files(REPO) == FILES | contents(folder)


def test_a_connection_broken_in_the_commit(hub, api, folder):
    hub.add(REPO, FILES)
    hub.break_on("POST", "/commit/", after=10)
    with pytest.raises(BROKEN):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.files(REPO) == FILES and len(hub.large_files) == 1 and posted(hub, "/commit/") == 1


SCRIPT = """
import sys
from huggingface_hub import HfApi, hf_hub_download, whoami
api = HfApi()
repo = api.create_repo("from-elsewhere", private=True).repo_id
api.upload_folder(repo_id=repo, folder_path=sys.argv[1])
print(open(hf_hub_download(repo, "config.json")).read(), whoami()["name"])
"""


def test_a_fresh_process_knows_only_this_hub(hub, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_machine")

    def run(cache, token=None) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", SCRIPT, folder]
        return subprocess.run(command, env=hub.env(tmp_path / cache, token), capture_output=True, text=True)

    result = run("cache", hub.token)
    assert result.stdout.split("\n")[0] == '{"hidden_size": 4} me', result.stderr
    assert hub.files("me/from-elsewhere") == contents(folder) and (tmp_path / "cache" / "hub").is_dir()
    hub.requests.clear()
    refused = run("other")
    assert refused.returncode == 1 and "401 Unauthorized" in refused.stderr
    assert not any(request.token for request in hub.requests)
