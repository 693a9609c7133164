"""The repositories of the Hub's stand-in, in memory: commits, branches, and what the Hub tells of their files."""

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

Files = dict[str, bytes]  # by path
LARGE = (".safetensors", ".bin", ".parquet")  # the Hub keeps these, and more, in large file storage


class Refusal(Exception):
    """An answer that is not a success: an HTTP status, what the Hub says, and its code, which the client turns into a
    class of its own (RepoNotFound, RevisionNotFound or EntryNotFound)."""

    def __init__(self, status: int, message: str, code: str | None = None, **content: str):
        super().__init__(message)
        self.status, self.code = status, code
        self.content = {"error": message} | content


@dataclass
class Repository:
    """Commits by their hash, each with all its files; branches by name, each with its last commit's hash."""

    private: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: Files) -> str:
        """The hash of a new commit that holds exactly these files."""
        self.branches[branch] = hashlib.sha1(f"commit {len(self.commits)}".encode()).hexdigest()
        self.commits[self.branches[branch]] = dict(files)
        return self.branches[branch]

    def at(self, revision: str) -> Files:
        """The files of a branch's last commit, or of the commit with this hash."""
        return self.commits[self.resolve(revision)]

    def resolve(self, revision: str) -> str:
        """The hash of the commit that a branch's name or a hash means."""
        commit = self.branches.get(revision, revision)
        if commit not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit


def object_id(path: str, content: bytes) -> str:
    """What names a file's content: the SHA-256 of a large file, git's blob hash of others."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def describe(files: Files, paths: Iterable[str]) -> list[dict]:
    """The Hub's entries for those paths that are files, or folders of files."""
    entries = []
    for path in paths:
        if path in files:
            entry = {"type": "file", "path": path, "size": len(files[path]), "oid": object_id(path, files[path])}
            if path.endswith(LARGE):
                entry["lfs"] = {"oid": entry["oid"], "size": entry["size"], "pointerSize": 134}
            entries.append(entry)
        elif any(PurePosixPath(file).is_relative_to(path) for file in files):
            tree = hashlib.sha1(path.encode()).hexdigest()
            entries.append({"type": "directory", "path": path, "size": 0, "oid": tree})
    return entries


def list_folder(files: Files, folder: str, recursive: bool) -> list[str]:
    """The paths of the files and folders in a folder."""
    root = PurePosixPath(folder)
    paths = {PurePosixPath(file) for file in files}
    paths |= {parent for path in paths for parent in path.parents}
    inside = sorted(path for path in paths if path != root and path.is_relative_to(root))
    return [str(path) for path in inside if recursive or path.parent == root]


def apply_operations(files: Files, operations: Iterable[dict], large_files: Files) -> Files:
    """The files after a commit's operations, each {"key": kind, "value": details}."""
    files = dict(files)
    for operation in operations:
        kind, value = operation["key"], operation["value"]
        if kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            if value["oid"] not in large_files:
                raise Refusal(400, f"{value['path']}: its content was not uploaded")
            files[value["path"]] = large_files[value["oid"]]
        elif kind == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise Refusal(404, f"{value['path']} does not exist", "EntryNotFound")
        elif kind == "deletedFolder":
            folder = value["path"].rstrip("/")
            files = {path: content for path, content in files.items() if not PurePosixPath(path).is_relative_to(folder)}
    return files
