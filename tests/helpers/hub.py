"""A stand-in of a model hub on 127.0.0.1, because no test may reach for a real one.

It answers the HTTP requests that huggingface_hub's own client makes for a download, a new repository, a
branch and a commit, as the hub's documentation and that client describe them. All files are stored as regular
ones: nothing here stands for LFS or Xet storage, and nothing shows that the real hub answers in this way.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_StandInTokenOfTheTestsOfTheHubAlone"


@dataclass
class Repository:
    """Commits, newest last, as (hash, message, files); branches and tags by name."""

    private: bool = False
    gated: bool = False
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], message: str = "by hand", ref: str = "main") -> str:
        """Add files on the branch `ref`; returns the commit's hash."""
        before = self.files(self.refs[ref]) if ref in self.refs else {}
        content = {**before, **files}
        oid = hashlib.sha1(repr((len(self.commits), message, sorted(content.items()))).encode()).hexdigest()
        self.commits.append((oid, message, content))
        self.refs[ref] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        oid = self.refs.get(revision, revision)
        return oid if any(oid == known for known, _, _ in self.commits) else None

    def files(self, oid: str) -> dict[str, bytes]:
        return next(files for known, _, files in self.commits if known == oid)


@dataclass
class Hub:
    """The stand-in.

    Attributes:
        url: What HF_ENDPOINT must be.
        repositories: By name.
        requests: `METHOD path` of each request, in order.
        authorizations: The header of each request.
        writers: Tokens that may write; any other one may read what is public.
        delay: Seconds to wait before each answer.
        failure: A status to answer every request with.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    writers: set[str] = field(default_factory=lambda: {TOKEN})
    delay: float = 0.0
    failure: int | None = None

    def add(self, name: str, files: dict[str, bytes] | None = None, **kind: bool) -> Repository:
        """A repository with one commit."""
        self.repositories[name] = Repository(**kind)
        self.repositories[name].commit({".gitattributes": b"", **(files or {})}, "initial commit")
        return self.repositories[name]

    def fetched(self) -> list[str]:
        """The files that were downloaded, as REPOSITORY/FILE."""
        found = [re.fullmatch(r"GET /(.+?)/resolve/[^/]+/(.+)", line) for line in self.requests]
        return [f"{match[1]}/{match[2]}" for match in found if match]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each answer waits 40 ms for the client

    def log_message(self, *_: object) -> None:
        """Keep requests out of the tests' output."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {unquote(path)}")
        self.hub.authorizations.append(self.headers.get("Authorization"))
        threading.Event().wait(self.hub.delay)  # tests that do not wait for pauses patch time.sleep
        if self.hub.failure is not None:
            return self._send(self.hub.failure, {"error": "out of order"})
        for method, pattern, action in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                groups = {name: unquote(value) for name, value in match.groupdict().items()}
                return action(self, body=body, **groups)
        return self._send(404, {"error": f"the stand-in has no {self.command} {path}"})

    def _send(
        self, status: int, content: Any, headers: dict[str, str] | None = None, error_code: str | None = None
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if error_code is not None:
            self.send_header("X-Error-Code", error_code)
            self.send_header("X-Error-Message", error_code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def _can_write(self) -> bool:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") in self.hub.writers

    def _repository(self, name: str) -> Repository | None:
        """The repository, or None after an answer that says why not."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self._can_write):
            # The hub does not tell a stranger whether a private repository exists.
            status = 404 if self._can_write else 401
            self._send(status, {"error": "Repository not found"}, error_code="RepoNotFound")
            return None
        return found

    def _commit_of(self, repository: Repository, revision: str) -> str | None:
        oid = repository.resolve(revision)
        if oid is None:
            self._send(404, {"error": f"Invalid rev id: {revision}"}, error_code="RevisionNotFound")
        return oid

    def _file(self, *, repo: str, revision: str, path: str, body: bytes) -> None:
        repository = self._repository(repo)
        oid = repository and self._commit_of(repository, revision)
        if repository is None or oid is None:
            return
        if repository.gated and not self._can_write:
            status = 401 if self.headers.get("Authorization") is None else 403
            return self._send(status, {"error": "gated"}, error_code="GatedRepo")
        files = repository.files(oid)
        commit = {"X-Repo-Commit": oid}
        if path not in files:
            return self._send(404, {"error": "Entry not found"}, commit, error_code="EntryNotFound")
        etag = hashlib.sha1(files[path]).hexdigest()
        self._send(200, files[path], {**commit, "ETag": f'"{etag}"'})

    def _info(self, *, repo: str, body: bytes, revision: str = "main") -> None:
        repository = self._repository(repo)
        oid = repository and self._commit_of(repository, revision)
        if repository is None or oid is None:
            return
        names = [{"rfilename": name} for name in sorted(repository.files(oid))]
        self._send(
            200, {"id": repo, "modelId": repo, "sha": oid, "private": repository.private, "siblings": names}
        )

    def _create(self, *, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        if not self._can_write:
            return self._send(
                403 if self.headers.get("Authorization") else 401, {"error": "no right to write"}
            )
        status = 200
        if name in self.hub.repositories:
            status = 409
        else:
            # huggingface_hub 1 says `private`, 2 says `visibility`.
            self.hub.add(name, private=asked.get("visibility") == "private" or asked.get("private") is True)
        return self._send(status, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _branch(self, *, repo: str, revision: str, body: bytes) -> None:
        repository = self._repository(repo)
        if repository is None:
            return
        if not self._can_write:
            return self._send(403, {"error": "no right to write"})
        exists = revision in repository.refs
        repository.refs.setdefault(revision, repository.refs["main"])
        self._send(409 if exists else 200, {})

    def _validate(self, *, body: bytes) -> None:
        """Whether a card's front matter is YAML with an object."""
        text = json.loads(body)["content"]
        front = re.match(r"---\n(.*?)\n---\n", text, re.S)
        try:
            valid = front is not None and isinstance(yaml.safe_load(front[1]), dict)
        except yaml.YAMLError:
            valid = False
        errors = [] if valid else [{"message": "the metadata are no YAML"}]
        self._send(200 if valid else 400, {"errors": errors, "warnings": []})

    def _preupload(self, *, repo: str, revision: str, body: bytes) -> None:
        repository = self._repository(repo)
        oid = repository and self._commit_of(repository, revision)
        if repository is None or oid is None:
            return
        files = repository.files(oid)
        answer = [
            {
                "path": file["path"],
                "uploadMode": "regular",
                "shouldIgnore": False,
                "oid": _git_hash(files[file["path"]]) if file["path"] in files else None,
            }
            for file in json.loads(body)["files"]
        ]
        self._send(200, {"files": answer})

    def _commit(self, *, repo: str, revision: str, body: bytes) -> None:
        repository = self._repository(repo)
        if repository is None:
            return
        if not self._can_write:
            return self._send(403, {"error": "no right to write"})
        if revision not in repository.refs:
            return self._send(404, {"error": "no branch"}, error_code="RevisionNotFound")
        lines = [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, repository.refs[revision]):
            return self._send(412, {"error": "a commit has happened since"})
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        oid = repository.commit(files, header["summary"], revision)
        self._send(
            200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"}
        )


_REPO, _REVISION = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
_ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/api/repos/create", _Handler._create),
    ("POST", "/api/validate-yaml", _Handler._validate),
    ("POST", rf"/api/models/{_REPO}/branch/{_REVISION}", _Handler._branch),
    ("POST", rf"/api/models/{_REPO}/preupload/{_REVISION}", _Handler._preupload),
    ("POST", rf"/api/models/{_REPO}/commit/{_REVISION}", _Handler._commit),
    ("GET", rf"/api/models/{_REPO}", _Handler._info),
    ("GET", rf"/api/models/{_REPO}/revision/{_REVISION}", _Handler._info),
    ("HEAD GET", rf"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", _Handler._file),
]


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub without repositories, until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_hub(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch, token: str | None = None) -> None:
    """Point huggingface_hub, which reads the environment when it is imported, to a hub in this process.

    Args:
        url: The hub's.
        cache: An empty cache.
        monkeypatch: Sets it back.
        token: Who is logged in; nobody by default, whatever the machine has.
    """
    from huggingface_hub import constants, hf_api

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(hf_api.api, "endpoint", url)  # behind `huggingface_hub.file_exists` and its like
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # With telemetry, huggingface_hub asks once a day for a list of its own.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(cache / "stored_tokens"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)


def environment(url: str, home: Path, token: str | None = None) -> dict[str, str]:
    """The variables that point another process to a hub."""
    return {
        "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": token or "",
    }  # fmt: skip
