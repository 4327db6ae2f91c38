"""A Hub on this machine: folders, served as the Hugging Face Hub serves repositories."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"  # of every repository, whose branch is "main"
REVISIONS: Final = ("main", COMMIT)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests that `snapshot_download` and `model_info` of huggingface_hub make."""

    server: Hub

    def do_HEAD(self) -> None:
        self.answer(has_body=False)

    def do_GET(self) -> None:
        self.answer(has_body=True)

    def answer(self, *, has_body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.server.asked.append("/".join(parts))
        body, headers = self._find(parts)
        self.send_response(404 if body is None else 200)
        for name, value in {"Content-Length": str(len(body or b"")), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(body or b"")

    def _find(self, parts: list[str]) -> tuple[bytes | None, dict[str, str]]:
        match parts:
            case ["api", "models", owner, name, "revision", revision] if revision in REVISIONS:
                return self._json(self._info(f"{owner}/{name}"))
            case ["api", "models", owner, name, "tree", revision, *_] if revision in REVISIONS:
                return self._json(self._tree(f"{owner}/{name}"))
            case [owner, name, "resolve", revision, *file] if revision in REVISIONS:
                path = self.server.folder / owner / name / "/".join(file)
                if path.is_file():
                    content = path.read_bytes()
                    tag = f'"{hashlib.sha1(content).hexdigest()}"'
                    return content, {"ETag": tag, "X-Repo-Commit": COMMIT}
        return None, {"X-Error-Code": "RepoNotFound"}

    def _json(self, value: Any) -> tuple[bytes | None, dict[str, str]]:
        return (None if value is None else json.dumps(value).encode()), {"Content-Type": "application/json"}

    def _info(self, repository: str) -> dict[str, Any] | None:
        files = self._tree(repository)
        if files is None:
            return None
        siblings = [{"rfilename": item["path"], "size": item["size"], "blobId": item["oid"]} for item in files]
        return {"id": repository, "sha": COMMIT, "siblings": siblings}

    def _tree(self, repository: str) -> list[dict[str, Any]] | None:
        folder = self.server.folder / repository
        if not folder.is_dir():
            return None
        return [
            {"type": "file", "path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "oid": "0" * 40}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # their name
        pass


class Hub(ThreadingHTTPServer):
    """The server; `asked` are the paths of all requests."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloaded(self) -> set[str]:
        """Names of the files of which the content was asked for."""
        return {path.split("/", 4)[4] for path in self.asked if path.split("/")[2:3] == ["resolve"]}


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """Serve the repositories `folder`/owner/name while the context lasts."""
    with Hub(folder) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()
