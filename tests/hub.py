"""A stand-in for the hub on this machine: a server that speaks the few routes that fetching and pushing a model need.

In: folders as revisions of models. Out: their files, errors as the hub words them (``X-Error-Code``), and what was
pushed. ``asked`` lists the files that were fetched.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from videollm.checkpoint import hub


class Hub(ThreadingHTTPServer):
    """``models``: {name: {revision: folder}}, "main" first; ``gated``: names that ask for consent."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Routes)
        self.models: dict[str, dict[str, Path]] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []
        self.made: dict[str, dict] = {}  # models that were made by a push
        self.pushed: dict[str, bytes] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    @staticmethod
    def commit(folder: Path) -> str:
        return hashlib.sha1(str(folder).encode()).hexdigest()  # 40 digits, as a commit has


class Routes(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def give(self, data: bytes | object = b"", status: int = 200, **headers: str) -> None:
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, code: str, status: int = 404) -> None:
        self.give({"error": code}, status, X_Error_Code=code)

    def do_GET(self):
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        name, rest = "/".join(parts[:2]), parts[2:]
        if name in self.server.gated:
            return self.refuse("GatedRepo", 403)
        if name not in self.server.models:
            return self.refuse("RepoNotFound")
        revisions = self.server.models[name]
        revisions = revisions | {Hub.commit(folder): folder for folder in revisions.values()}
        folder = revisions.get(rest[1] if len(rest) > 1 else "main")
        if folder is None:
            return self.refuse("RevisionNotFound")
        files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
        if api and rest[:1] == ["tree"]:
            return self.give(
                [{"type": "file", "path": n, "size": p.stat().st_size, "oid": n} for n, p in files.items()]
            )
        if api:
            return self.give({"id": name, "sha": Hub.commit(folder), "siblings": [{"rfilename": n} for n in files]})
        path = "/".join(rest[2:])
        data = files[path].read_bytes()
        if self.command == "GET":
            self.server.asked.append(path)
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self.give(data, ETag=etag, X_Repo_Commit=Hub.commit(folder))

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        route = urlsplit(self.path).path
        if route == "/api/repos/create":
            asked = json.loads(body)
            self.server.made[f"{asked.get('organization')}/{asked['name']}"] = asked
            return self.give({"url": f"{self.server.url}/{asked.get('organization')}/{asked['name']}"})
        if route == "/api/validate-yaml":
            return self.give({"errors": [], "warnings": []})
        if "/preupload/" in route:
            names = [file["path"] for file in json.loads(body)["files"]]
            return self.give({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.pushed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        name = "/".join(route.split("/")[3:5])
        return self.give({"commitUrl": f"{self.server.url}/{name}/commit/0", "commitOid": "0" * 40, "success": True})


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A hub that is empty, in place of the real one; with a cache that is, too."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        hub.fetched.cache_clear()
        yield server
        hub.fetched.cache_clear()
        server.shutdown()
