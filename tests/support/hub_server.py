"""A Hub on the loopback interface: what `huggingface_hub` needs to create a repository, push to it and read it back."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class HubServer(ThreadingHTTPServer):
    """
    Repositories in memory.

    Attributes:
        files (`dict[str, dict[str, bytes]]`): Content of each file of each repository, such as `files["me/model"]["README.md"]`,
            for a data set `files["datasets/me/data"]["README.md"]`.
        commits (`list[str]`): Titles of the commits.
        requests (`list[str]`): Method and path of every request.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.requests: list[str] = []

    @property
    def head(self) -> str:
        """The newest commit: clients keep the files of each, and do not ask for them again."""
        return f"{len(self.commits):040d}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub():
    """Run a [`HubServer`] for a while."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: Any = None, **headers: str) -> None:
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for method, pattern, action in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                action(self, body, *(part and part.removeprefix("models/") for part in match.groups()))
                return
        self._answer(404, {"error": f"no route for {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def who(self, body: bytes) -> None:
        self._answer(200, {"name": "me", "type": "user", "orgs": []})

    def create(self, body: bytes) -> None:
        request = json.loads(body)
        repo = f"{request.get('organization') or 'me'}/{request['name']}"
        if request.get("type", "model") != "model":
            repo = f"{request['type']}s/{repo}"
        self.server.files.setdefault(repo, {})
        self._answer(200, {"url": f"{self.server.url}/{repo}", "name": repo, "id": "1"})

    def validate(self, body: bytes) -> None:
        self._answer(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo: str) -> None:
        files = json.loads(body)["files"]
        large = (".safetensors", ".bin", ".pt", ".png")
        modes = ["lfs" if file["path"].endswith(large) else "regular" for file in files]
        self._answer(200, {"files": [
            {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None} for file, mode in zip(files, modes)
        ]})  # fmt: skip

    def batch(self, body: bytes, repo: str) -> None:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.server.url}/objects/{item['oid']}", "header": {}}}}
            for item in json.loads(body)["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def upload(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self._answer(200)

    def commit(self, body: bytes, repo: str) -> None:
        files = self.server.files[repo]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.server.commits.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        self._answer(200, {"commitUrl": f"{self.server.url}/{repo}/commit/{self.server.head}", "commitOid": self.server.head,
                           "success": True})  # fmt: skip

    def info(self, body: bytes, repo: str) -> None:
        if repo not in self.server.files:
            self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return
        siblings = [{"rfilename": name} for name in self.server.files[repo]]
        self._answer(
            200,
            {
                "id": repo.removeprefix("datasets/"),
                "sha": self.server.head,
                "siblings": siblings,
                "tags": [],
                "private": False,
            },
        )

    def tree(self, body: bytes, repo: str, folder: str | None) -> None:
        files = self.server.files.get(repo, {})
        found = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in files.items()
            if folder is None or name.startswith(f"{folder.strip('/')}/")
        ]
        if folder is not None and not found:
            self._answer(404, {"error": "not found"}, X_Error_Code="EntryNotFound")
        else:
            self._answer(200, found)

    def resolve(self, body: bytes, repo: str, name: str) -> None:
        if repo not in self.server.files:
            self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif name not in self.server.files[repo]:
            self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        else:
            content = self.server.files[repo][name]
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            self._answer(
                200, content, ETag=tag, X_Repo_Commit=self.server.head, Content_Type="application/octet-stream"
            )


_REPO = r"((?:datasets/)?[\w.-]+/[\w.-]+)"
_OF_TYPE = r"((?:models|datasets)/[\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.who),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/{_OF_TYPE}/preupload/main", _Handler.preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/objects/(\w+)", _Handler.upload),
    ("POST", rf"/api/{_OF_TYPE}/commit/main", _Handler.commit),
    ("GET", rf"/api/{_OF_TYPE}/tree/\w+(/.*)?", _Handler.tree),
    ("GET", rf"/api/{_OF_TYPE}(?:/revision/\w+)?", _Handler.info),
    ("GET HEAD", rf"/{_REPO}/resolve/\w+/(.+)", _Handler.resolve),
]
