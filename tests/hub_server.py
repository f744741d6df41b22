"""A small Hugging Face Hub on loopback: what `huggingface_hub` asks to create, push to and pull from a model.

Every commit is kept, and requests can be made to fail. Xet has to be switched off (`HF_HUB_DISABLE_XET=1`).
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import RepoCard
from huggingface_hub.repocard_data import model_index_to_eval_results


TOKEN = "hf_secretOfTheTests"


@dataclass
class Commit:
    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    private: bool
    commits: list[Commit] = field(default_factory=list)

    def commit(self, message: str, files: dict[str, bytes]) -> Commit:
        digest = hashlib.sha1(f"{len(self.commits)} {message} {sorted(files)}".encode())
        for content in files.values():
            digest.update(hashlib.sha1(content).digest())
        self.commits.append(Commit(digest.hexdigest(), message, files))
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.oid == revision), None)


@dataclass
class Hub:
    """State of the server, which accepts one token, of user `me`."""

    url: str
    token: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    # Method, pattern of the path, status and message of answers that are errors.
    faults: list[tuple[str, str, int, str]] = field(default_factory=list)
    # Method, path and status of everything that was asked.
    requests: list[tuple[str, str, int]] = field(default_factory=list)


@contextmanager
def run_hub(token: str) -> Iterator[Hub]:
    """Serves a Hub as long as the context lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}", token)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *args: Any) -> None:
        """Stays silent."""

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        try:
            for method, pattern, status, message in self.hub.faults:
                if method == self.command and re.search(pattern, path):
                    raise HubError(status, message)
            for method, pattern, route in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split("|"):
                    route(self, body, **match.groupdict())
                    return
            raise HubError(404, f"this Hub has no route {self.command} {path}")
        except HubError as error:
            headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
            self._send(error.status, {"error": str(error)}, headers)

    do_GET = do_HEAD = do_POST = handle_any

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.hub.requests.append((self.command, unquote(urlsplit(self.path).path), status))
        self.send_response(status)
        # A client that is told to wait does so for one second more than that.
        retry = {"Retry-After": "0"} if status >= 500 else {}
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | retry).items():
            self.send_header(name, value)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _authorised(self) -> bool:
        given = self.headers.get("Authorization")
        if given is not None and given != f"Bearer {self.hub.token}":
            raise HubError(401, "Invalid credentials in Authorization header")
        return given is not None

    def _require_token(self) -> None:
        if not self._authorised():
            raise HubError(401, "Invalid username or password.")

    def _repository(self, repo_id: str) -> Repository:
        known = self._authorised()
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and not known):
            raise HubError(404 if known else 401, "Repository not found", "RepoNotFound")
        return repository

    def _commit(self, repo_id: str, revision: str) -> Commit:
        commit = self._repository(repo_id).at(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def whoami(self, body: bytes) -> None:
        self._require_token()
        self._send(200, {"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}})

    def create(self, body: bytes) -> None:
        self._require_token()
        asked = json.loads(body)
        repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if not repo_id.startswith("me/"):
            raise HubError(403, "You don't have the rights to create a model under this namespace")
        answer = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.hub.repositories:
            self._send(409, answer | {"error": "You already created this model repo"})
            return
        repository = Repository(private=asked.get("private") or asked.get("visibility") == "private")
        repository.commit("initial commit", {".gitattributes": b""})
        self.hub.repositories[repo_id] = repository
        self._send(200, answer)

    def validate_yaml(self, body: bytes) -> None:
        data = RepoCard(json.loads(body)["content"]).data.to_dict()
        model_index_to_eval_results(data.get("model-index", []))
        self._send(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo_id: str, revision: str) -> None:
        self._require_token()
        self._commit(repo_id, revision)
        mode = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
        self._send(200, {"files": [{"path": asked["path"]} | mode for asked in json.loads(body)["files"]]})

    def commit(self, body: bytes, repo_id: str, revision: str) -> None:
        self._require_token()
        files = dict(self._commit(repo_id, revision).files)
        summary = ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    summary = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "deletedFile":
                    del files[value["path"]]
        commit = self.hub.repositories[repo_id].commit(summary, files)
        url = f"{self.hub.url}/{repo_id}/commit/{commit.oid}"
        self._send(200, {"success": True, "commitUrl": url, "commitOid": commit.oid})

    def info(self, body: bytes, repo_id: str, revision: str = "main") -> None:
        commit = self._commit(repo_id, revision)
        private = self.hub.repositories[repo_id].private
        siblings = [{"rfilename": path} for path in commit.files]
        self._send(200, {"id": repo_id, "sha": commit.oid, "private": private, "tags": [], "siblings": siblings})

    def tree(self, body: bytes, repo_id: str, revision: str, folder: str | None = None) -> None:
        commit = self._commit(repo_id, revision)
        prefix = f"{folder}/" if folder else ""
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
            for path, content in commit.files.items()
            if path.startswith(prefix)
        ]
        if folder and not entries:
            raise HubError(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
        self._send(200, entries)

    def resolve(self, body: bytes, repo_id: str, revision: str, path: str) -> None:
        commit = self._commit(repo_id, revision)
        headers = {"X-Repo-Commit": commit.oid, "Content-Type": "application/octet-stream"}
        if path not in commit.files:
            missing = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self._send(404, {"error": "Entry not found"}, {"X-Repo-Commit": commit.oid} | missing)
            return
        content = commit.files[path]
        self._send(200, content, headers | {"ETag": f'"{git_hash(content)}"'})


REPO, REVISION = r"(?P<repo_id>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", rf"/api/models/{REPO}/preupload/{REVISION}", Handler.preupload),
    ("POST", rf"/api/models/{REPO}/commit/{REVISION}", Handler.commit),
    ("GET", rf"/api/models/{REPO}/tree/{REVISION}(?:/(?P<folder>.+))?", Handler.tree),
    ("GET", rf"/api/models/{REPO}/revision/{REVISION}", Handler.info),
    ("GET", rf"/api/models/{REPO}", Handler.info),
    ("GET|HEAD", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def uploaded_files(repository: Repository) -> dict[str, bytes]:
    """What the last commit holds but for what the Hub itself has added."""
    return {name: data for name, data in repository.commits[-1].files.items() if name != ".gitattributes"}
