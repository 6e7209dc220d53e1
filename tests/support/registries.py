"""A stand-in for npm's registry and pip's index on one port of the loopback, a small package in each."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

NPM_PACKAGE = "clsecure-sample"
FIXED_PACKAGE = "clsecure-fixed"
"""Its tarball is named as the machine itself names the registry, whoever asks."""
SCOPED_PACKAGE = "@clsteam/sample"
PIP_PACKAGE = "clsecure-sample"
WORD = "the small package speaks"
"""What every package says when it is used."""


class _Server:
    """Answers GET on a port of the loopback; ``log`` has the path of every request that came."""

    def __init__(self) -> None:
        self.log: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # http.server's name for it
                server.log.append(self.path)
                kind, body = server.answer(self.path.partition("?")[0], self.headers.get("Host", ""))
                self.send_response(HTTPStatus.OK if body else HTTPStatus.NOT_FOUND)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Say nothing: ``log`` is there."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, path: str, host: str) -> tuple[str, bytes]:
        """Return type and body of a path; an empty body for what is not there.

        :param host: what the client calls this server: npm's tarballs are named by whole URLs.
        """
        raise NotImplementedError


class Directory(_Server):
    """Serves the files below a directory."""

    def __init__(self, top: Path) -> None:
        super().__init__()
        self._top = top.resolve()

    def answer(self, path: str, host: str) -> tuple[str, bytes]:  # noqa: ARG002
        file = (self._top / path.lstrip("/")).resolve()
        found = file.is_relative_to(self._top) and file.is_file()
        return "application/octet-stream", file.read_bytes() if found else b""


class Registries(_Server):
    """Serves npm's registry, one of a scope, and pip's index."""

    def answer(self, path: str, host: str) -> tuple[str, bytes]:
        wheel = f"{PIP_PACKAGE.replace('-', '_')}-1.0-py3-none-any.whl"
        match path.replace("%2f", "/").replace("%2F", "/"):
            case "/npm/clsecure-sample":
                return _npm_document(NPM_PACKAGE, f"http://{host}/npm/-/sample.tgz")
            case "/team/@clsteam/sample":
                return _npm_document(SCOPED_PACKAGE, f"http://{host}/team/-/sample.tgz")
            case "/clsecure-fixed":
                return _npm_document(FIXED_PACKAGE, f"http://localhost:{self.port}/-/fixed.tgz")
            case "/npm/-/sample.tgz":
                return "application/octet-stream", _tarball(NPM_PACKAGE)
            case "/-/fixed.tgz":
                return "application/octet-stream", _tarball(FIXED_PACKAGE)
            case "/team/-/sample.tgz":
                return "application/octet-stream", _tarball(SCOPED_PACKAGE)
            case "/simple/clsecure-sample/":
                digest = hashlib.sha256(_wheel()).hexdigest()
                link = f'<a href="../../files/{wheel}#sha256={digest}">{wheel}</a>'
                return "text/html", f"<!DOCTYPE html><html><body>{link}</body></html>".encode()
            case found if found == f"/files/{wheel}":
                return "application/octet-stream", _wheel()
            case _:
                return "text/plain", b""


def _npm_document(name: str, tarball: str) -> tuple[str, bytes]:
    integrity = base64.b64encode(hashlib.sha512(_tarball(name)).digest()).decode()
    dist = {"tarball": tarball, "integrity": f"sha512-{integrity}"}
    version = {"name": name, "version": "1.0.0", "main": "index.js", "dist": dist}
    document = {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    return "application/json", json.dumps(document).encode()


def _tarball(name: str) -> bytes:
    package = {"name": name, "version": "1.0.0", "main": "index.js"}
    files = {"package.json": json.dumps(package), "index.js": f"module.exports = {json.dumps(WORD)};\n"}
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(f"package/{path}")
            entry.size, entry.mode = len(text), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return target.getvalue()


def _wheel() -> bytes:
    name = PIP_PACKAGE.replace("-", "_")
    files = {
        f"{name}.py": f"WORD = {WORD!r}\n",
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {PIP_PACKAGE}\nVersion: 1.0\n",
        f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{name}-1.0.dist-info/RECORD"))
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for path, text in {**files, f"{name}-1.0.dist-info/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), text)
    return target.getvalue()
