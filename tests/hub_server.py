"""A stand-in for the Hugging Face Hub on loopback, for tests with the real client: models and datasets, read and write.

It speaks the part of the Hub's HTTP protocol that `from_pretrained`, `load_dataset` and `push_to_hub` use, checks the
token, and cuts connections on demand. Everything is kept in memory. It has no pull requests, tags, Xet storage, quotas
or organisations, and it accepts every model card.
"""

import hashlib
import json
import os
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repository import LARGE, Files, Refusal, Repository, apply_operations, describe, list_folder, object_id


class Request(NamedTuple):
    """What arrived: `path` is the decoded path without the query, `token` tells whether a token was sent."""

    method: str
    path: str
    token: bool


class Break(NamedTuple):
    """Where to cut: in the body of such a request, `after` bytes."""

    method: str
    path: str
    after: int


class HubServer(ThreadingHTTPServer):
    """A Hub with one user and one token, up as long as it is used as a context manager.

    Attributes:
        endpoint: its address, for `HfApi(endpoint=...)`.
        token: the only token it accepts.
        user: the token's owner, in whose name repositories without a namespace are created.
        requests: what arrived, in order, as `Request`.
    """

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, token: str = "hf_stand_in", user: str = "me"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.token, self.user = token, user
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[Request] = []
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: Files = {}
        self.announced: set[str] = set()
        self.cut: Break | None = None
        self.lock = threading.Lock()

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.shutdown()
        self.server_close()

    def add(self, repo_id: str, files: Files, repo_type: str = "model", private: bool = False) -> None:
        """Serve these files, by their paths, as a new repository's first commit on main."""
        repository = self.repositories[repo_type, repo_id] = Repository(private)
        repository.commit("main", files)

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> Files:
        """A copy of what a repository holds at a branch or commit; KeyError without such a repository."""
        return dict(self.repositories[repo_type, repo_id].at(revision))

    def break_on(self, method: str, path: str = "", after: int = 0) -> None:
        """From now on cut the connection, without an answer, `after` bytes into the body of each request of this method
        whose path contains `path`. The client repeats most requests five times; in a fresh process that takes 23 s."""
        self.cut = Break(method, path, after)

    def mend(self) -> None:
        """Answer every request again."""
        self.cut = None

    def env(self, cache: Path | str, token: str | None = None) -> dict[str, str]:
        """The environment of a fresh process that knows only this Hub, this cache folder, and at most this token.

        The client reads `HF_ENDPOINT` as it is imported, so `from_pretrained` and the like need a fresh process.
        """
        ours = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        switches = ("DISABLE_XET", "DISABLE_TELEMETRY", "DISABLE_UPDATE_CHECK", "DISABLE_PROGRESS_BARS")
        settings = {f"HF_HUB_{switch}": "1" for switch in switches}
        settings |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(cache)} | ({"HF_TOKEN": token} if token else {})
        return kept | settings


class Handler(BaseHTTPRequestHandler):
    """Reads a request, calls the method that `ROUTES` names, and writes what it returns: bytes, or content for JSON."""

    protocol_version = "HTTP/1.1"
    server: HubServer
    query: dict[str, list[str]]
    body: bytes
    answer_headers: dict[str, str]

    def log_message(self, *args) -> None:
        pass

    def respond(self) -> None:
        url = urlsplit(self.path)
        self.query, self.answer_headers = parse_qs(url.query), {}
        self.server.requests.append(Request(self.command, unquote(url.path), "Authorization" in self.headers))
        if not self.read_body(unquote(url.path)):
            return
        try:
            with self.server.lock:
                status, content = 200, self.route(url.path)
        except Refusal as refusal:
            status, content = refusal.status, refusal.content
            self.answer_headers["X-Error-Message"] = str(refusal)
            if refusal.code:
                self.answer_headers["X-Error-Code"] = refusal.code
        self.write(status, content)

    do_GET = do_HEAD = do_POST = do_PUT = respond

    def read_body(self, path: str) -> bool:
        """Whether the body was read to its end; otherwise the connection is closed, as asked with `break_on`."""
        length, cut = int(self.headers.get("Content-Length") or 0), self.server.cut
        if cut and cut.method == self.command and cut.path in path:
            self.rfile.read(min(cut.after, length))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return False
        self.body = self.rfile.read(length)
        return True

    def route(self, path: str) -> bytes | dict | list:
        """What the method for this path returns, called with the pattern's groups."""
        for methods, pattern, view in ROUTES:
            if self.command in methods and (match := pattern.fullmatch(path)):
                return view(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
        raise Refusal(404, f"the stand-in does not know {self.command} {path}")

    def write(self, status: int, content: bytes | dict | list) -> None:
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body))} | self.answer_headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def authorised(self) -> bool:
        """Whether a token was sent; a wrong one is refused even where none is needed, as the Hub does."""
        sent = self.headers.get("Authorization")
        if sent and sent != f"Bearer {self.server.token}":
            raise Refusal(401, "Invalid credentials in Authorization header")
        return bool(sent)

    def require_token(self) -> None:
        if not self.authorised():
            raise Refusal(401, "Invalid username or password.")

    def repository(self, kind: str, repo_id: str, write: bool = False) -> Repository:
        """A repository that this request may read or write. Who sends no token cannot tell a private one from none."""
        repository = self.server.repositories.get((kind.removesuffix("s") or "model", repo_id))
        if not self.authorised() and (write or repository is None or repository.private):
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        if repository is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return repository

    def whoami(self) -> dict:
        self.require_token()
        role = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}}
        return {"type": "user", "name": self.server.user, "fullname": self.server.user, "orgs": [], "auth": role}

    def validate_card(self) -> dict:
        return {"errors": [], "warnings": []}

    def create(self) -> dict:
        self.require_token()
        wanted = json.loads(self.body)
        repo_type = wanted.get("type") or "model"
        repo_id = f"{wanted['organization'] or self.server.user}/{wanted['name']}"
        url = f"{self.server.endpoint}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"
        if (repo_type, repo_id) in self.server.repositories:
            raise Refusal(409, f"You already created this {repo_type} repo", url=url)
        self.server.add(repo_id, {}, repo_type, wanted.get("visibility") == "private")
        return {"url": url, "name": repo_id}

    def info(self, kind: str, repo_id: str, revision: str = "") -> dict:
        repository = self.repository(kind, repo_id)
        commit = repository.resolve(revision or "main")
        siblings = [{"rfilename": path} for path in repository.commits[commit]]
        about = {"_id": "1", "id": repo_id, "private": repository.private, "tags": []}
        return about | {"sha": commit, "siblings": siblings}

    def refs(self, kind: str, repo_id: str) -> dict:
        branches = self.repository(kind, repo_id).branches.items()
        named = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit} for name, commit in branches]
        return {"branches": named, "converts": [], "tags": []}

    def tree(self, kind: str, repo_id: str, revision: str, folder: str) -> list:
        files = self.repository(kind, repo_id).at(revision)
        paths = list_folder(files, folder, self.query.get("recursive", [""])[0].lower() == "true")
        if folder and not paths:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        return describe(files, paths)

    def paths_info(self, kind: str, repo_id: str, revision: str) -> list:
        wanted = parse_qs(self.body.decode()).get("paths", [])
        return describe(self.repository(kind, repo_id).at(revision), wanted)

    def download(self, kind: str, repo_id: str, revision: str, path: str) -> bytes:
        repository = self.repository(kind, repo_id)
        commit = repository.resolve(revision)
        self.answer_headers["X-Repo-Commit"] = commit
        if path not in repository.commits[commit]:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        content = repository.commits[commit][path]
        self.answer_headers["ETag"] = f'"{object_id(path, content)}"'
        return content

    def preupload(self, kind: str, repo_id: str, revision: str) -> dict:
        """How each file is to be sent, and what the branch holds in its place."""
        files = self.repository(kind, repo_id, write=True).at(revision)
        modes = []
        for path in [file["path"] for file in json.loads(self.body)["files"]]:
            mode = {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
            modes.append(mode | {"oid": object_id(path, files[path]) if path in files else None})
        return {"files": modes}

    def announce(self, kind: str, repo_id: str) -> dict:
        """Where to send each large file that is not here yet; as on the Hub, it is sent there without the token."""
        self.repository(kind, repo_id, write=True)
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.server.large_files:
                self.server.announced.add(item["oid"])
                item["actions"] = {"upload": {"href": f"{self.server.endpoint}/large-files/{item['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def upload(self, oid: str) -> bytes:
        if oid not in self.server.announced:
            raise Refusal(403, "Access denied")
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "The content does not match its SHA-256")
        self.server.large_files[oid] = self.body
        return b""

    def commit(self, kind: str, repo_id: str, revision: str) -> dict:
        """Apply all of the commit's operations, or none."""
        repository = self.repository(kind, repo_id, write=True)
        if revision not in repository.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        operations = [json.loads(line) for line in self.body.splitlines()]
        files = apply_operations(repository.at(revision), operations, self.server.large_files)
        commit = repository.commit(revision, files)
        return {"success": True, "commitOid": commit, "commitUrl": f"{self.server.endpoint}/{repo_id}/commit/{commit}"}

    def branch(self, kind: str, repo_id: str, name: str) -> dict:
        repository = self.repository(kind, repo_id, write=True)
        if name in repository.branches:
            raise Refusal(409, f"Reference already exists: {name}")
        repository.branches[name] = repository.resolve(json.loads(self.body).get("startingPoint", "main"))
        return {}


# No repository here has an id without a namespace, but clients ask for such ones too.
REPO = "(?P<kind>models|datasets|spaces)/(?P<repo_id>[^/]+(/[^/]+)??)"
# The address of files has no "models/"; an empty kind is a model there.
FILES = "/((?P<kind>datasets|spaces)/)?(?P<repo_id>[^/]+(/[^/]+)??)"
ROUTES = [
    (methods.split(), re.compile(pattern), view)
    for methods, pattern, view in (
        ("GET", "/api/whoami-v2", Handler.whoami),
        ("POST", "/api/validate-yaml", Handler.validate_card),
        ("POST", "/api/repos/create", Handler.create),
        ("GET", f"/api/{REPO}(/revision/(?P<revision>[^/]+))?", Handler.info),
        ("GET", f"/api/{REPO}/refs", Handler.refs),
        ("GET", f"/api/{REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", Handler.tree),
        ("POST", f"/api/{REPO}/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
        ("POST", f"/api/{REPO}/preupload/(?P<revision>[^/]+)", Handler.preupload),
        ("POST", f"/api/{REPO}/commit/(?P<revision>[^/]+)", Handler.commit),
        ("POST", f"/api/{REPO}/branch/(?P<name>[^/]+)", Handler.branch),
        ("POST", rf"{FILES}\.git/info/lfs/objects/batch", Handler.announce),
        ("PUT", "/large-files/(?P<oid>[0-9a-f]{64})", Handler.upload),
        ("GET HEAD", f"{FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.download),
    )
]
