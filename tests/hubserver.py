"""A small HTTP server on 127.0.0.1 for tests: plain files, a Hugging Face hub, and what can go wrong with both.

    with HubServer(root) as server:                      # root/owner/name/... are repositories, all else plain files
        server.url                                       # http://127.0.0.1:PORT, also the HF_ENDPOINT
        server.fail("data/x.bin", cut=1000, times=1)     # close the connection after 1000 bytes, once
        server.requests                                  # what came: method, path, query, headers (lower case), size sent

As a hub it answers what huggingface_hub 2.4 asks over plain HTTP: model info, tree and paths-info under
/api/models/{repo}, HEAD and GET of /{repo}/resolve/{revision}/{file}. A file of `lfs_from` bytes or more is told as LFS:
its sha256 stands in the listing and in X-Linked-Etag, and its content is redirected to /cdn/ on another host name, with
a signature in the query, as the real hub does. Smaller files have the git blob's sha1 as ETag.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import socket
import ssl
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIGNATURE = "very-secret-signature"


@dataclass
class Request:
    """One request as it came."""

    method: str
    path: str
    query: str
    headers: dict[str, str]  # names in lower case


@dataclass
class Fault:
    """What goes wrong when `method` meets a path that ends with `path` (or matches it as a glob)."""

    path: str
    times: int | None = None  # how often; None is always
    method: str = "GET"
    cut: int | None = None  # Content-Length is right, the connection closes after so many bytes of the body
    reset: bool = False  # ... with a TCP reset instead of an orderly end
    truncate: int | None = None  # the body is the first so many bytes, and Content-Length says so
    content: bytes | None = None  # another content, with its own length
    status: int | None = None  # this status and no content
    headers: dict[str, str] = field(default_factory=dict)  # sent with `status`, such as X-Error-Code
    delay: float = 0.0  # seconds between headers and body
    unannounced: bool = False  # no Content-Length: the body ends with the connection
    hang: bool = False  # headers, as much of the body as `cut` says (0), then silence until the server closes


class HubServer:
    """Serves the folder `root`; a context manager. Attributes may be changed while it runs.

    Attributes:
        revisions: commits and branches that exist; the branch `main` is COMMIT.
        moved: the commit that the hub answers instead of the one asked for, if any.
        token: without `Authorization: Bearer TOKEN` a hub request is answered 401, if set.
        lfs_from: size in bytes from which a file is LFS.
        cdn: whether LFS content is redirected to another host name.
        ranges, ignore_if_range, validators: whether Range is honoured, even when If-Range says otherwise; whether ETag
            and Last-Modified of plain files are sent.
        faults, requests: what goes wrong, what came.
    """

    def __init__(self, root: Path, *, token: str | None = None, lfs_from: int = 1024, certificate: Path | None = None):
        self.root, self.token, self.lfs_from = Path(root), token, lfs_from
        self.revisions = {COMMIT, "main"}
        self.moved: str | None = None
        self.cdn = self.ranges = self.validators = True
        self.ignore_if_range = False
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._hashes: dict[tuple, tuple[str, str]] = {}
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._http.connections = []
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        if certificate:  # of localhost, with its key
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
            self.url = f"https://localhost:{self.port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        for connection in self._http.connections:  # those that are kept alive would be answered still
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def fail(self, path: str, **what) -> None:
        """Add a Fault; the first that matches counts, and one with `times` used up no longer matches."""
        self.faults.append(Fault(path, **what))

    def came(self, end: str, method: str = "GET") -> list[Request]:
        """The requests of that method whose path ends so."""
        return [request for request in self.requests if request.method == method and request.path.endswith(end)]

    def hashes(self, file: Path) -> tuple[str, str]:
        """(sha256, git blob sha1) of a file, remembered until it changes."""
        status = file.stat()
        key = (file, status.st_mtime_ns, status.st_size)
        if key not in self._hashes:
            content = file.read_bytes()
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            self._hashes[key] = hashlib.sha256(content).hexdigest(), git
        return self._hashes[key]

    def is_lfs(self, file: Path) -> bool:
        return file.stat().st_size >= self.lfs_from

    def commit(self, revision: str) -> str:
        """The commit that is answered for a revision."""
        return self.moved or (COMMIT if revision == "main" else revision)

    def entries(self, folder: Path) -> list[dict]:
        """The repository's files as the tree endpoint tells them."""
        found = []
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            size, (sha256, git) = file.stat().st_size, self.hashes(file)
            entry = {"type": "file", "path": file.relative_to(folder).as_posix(), "size": size, "oid": git}
            if self.is_lfs(file):
                entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 134}
            found.append(entry)
        return found

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that applies now, counted."""
        with self._lock:
            for fault in self.faults:
                matches = path.endswith(fault.path) or fnmatch.fnmatch(path, fault.path)
                if fault.method == method and matches and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def process_request(self, request, client_address) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that hung up is no error here
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path).lstrip("/")
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append(Request(self.command, f"/{path}", address.query, headers))
        if path.startswith("api/models/"):
            self.api(path.removeprefix("api/models/"))
        elif "/resolve/" in path:
            self.resolve(path)
        elif path.startswith("cdn/"):
            if SIGNATURE not in address.query or "authorization" in headers:
                return self.refuse(400, "the CDN wants the signature and no Authorization")
            self.file(self.hub.root / path.removeprefix("cdn/"))
        else:
            self.file(self.hub.root / path)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
        self.do_GET()

    # Answers

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, message: str, code: str = "", **headers: str) -> None:
        codes = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self.answer(
            status, {"Content-Type": "application/json", **codes, **headers}, b'{"error": "%s"}' % message.encode()
        )

    def broken(self, fault: Fault | None) -> bool:
        """Answer with the fault's status, if it has one."""
        if fault is None or fault.status is None:
            return False
        self.answer(fault.status, fault.headers)
        return True

    def folder(self, repo: str, revision: str) -> Path | None:
        """The repository's folder, or None when the request is refused."""
        if self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.refuse(401, "Invalid username or password.")
        elif not (self.hub.root / repo).is_dir():
            self.refuse(404, "Repository not found", "RepoNotFound")
        elif revision not in self.hub.revisions:
            self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        else:
            return self.hub.root / repo
        return None

    def api(self, path: str) -> None:
        """Model info, tree and paths-info."""
        fault = self.hub.fault(self.command, f"api/models/{path}")
        if self.broken(fault):
            return
        if fault is not None:  # any other: as for a file without content
            self.send(200, {"Content-Type": "text/html"}, fault.content or b"{}", fault)
            return
        owner, name, *rest = path.split("/")
        what, revision, under = (*rest, "", "", "")[:3] if rest else ("revision", "main", "")
        folder = self.folder(f"{owner}/{name}", revision)
        if folder is None:
            return
        entries = self.hub.entries(folder)
        if what == "revision":
            siblings = [{"rfilename": e["path"], "size": e["size"], "blobId": e["oid"]} for e in entries]
            for sibling, entry in zip(siblings, entries, strict=True):
                if "lfs" in entry:
                    lfs = entry["lfs"]
                    sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
            answer = {"id": f"{owner}/{name}", "sha": self.hub.commit(revision), "siblings": siblings, "private": False}
        elif what == "tree":
            answer = [e for e in entries if e["path"].startswith(under)]
        elif what == "paths-info":
            answer = [e for e in entries if e["path"] in self.form.get("paths", [])]
        else:
            self.refuse(404, "no such endpoint")
            return
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def resolve(self, path: str) -> None:
        """HEAD or GET of one file of a repository."""
        repo, rest = path.split("/resolve/", 1)
        revision, name = rest.split("/", 1)
        folder = self.folder(repo, revision)
        if folder is None:
            return
        commit, file = self.hub.commit(revision), folder / name
        if not file.is_file():
            self.refuse(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit})
            return
        sha256, git = self.hub.hashes(file)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git}"'}
        if self.hub.is_lfs(file):
            size = str(file.stat().st_size)
            headers = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": size}
            if self.hub.cdn:
                location = f"http://localhost:{self.hub.port}/cdn/{quote(f'{repo}/{name}')}?X-Amz-Signature={SIGNATURE}"
                if not (self.command == "HEAD" and self.broken(self.hub.fault("HEAD", f"{repo}/{name}"))):
                    self.answer(302, {**headers, "Location": location})
                return
        self.file(file, headers)

    def file(self, file: Path, headers: dict[str, str] | None = None) -> None:
        """Content of a file, whole or the range asked for, with the fault that applies."""
        if not file.is_file() or not file.resolve().is_relative_to(self.hub.root.resolve()):
            self.refuse(404, "no such file")
            return
        fault = self.hub.fault(self.command, file.relative_to(self.hub.root).as_posix()) or Fault("")
        if self.broken(fault):
            return
        content = file.read_bytes() if fault.content is None else fault.content
        headers = {"Content-Type": "application/octet-stream", **(headers or {})}
        if self.hub.validators:
            headers.setdefault("ETag", f'"{self.hub.hashes(file)[0]}"')
            headers.setdefault("Last-Modified", formatdate(file.stat().st_mtime, usegmt=True))
        status, first, last = 200, 0, len(content)
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if self.hub.ranges:
            headers["Accept-Ranges"] = "bytes"
            unchanged = (
                self.hub.ignore_if_range
                or condition is None
                or condition in (headers.get("ETag"), headers.get("Last-Modified"))
            )
            if asked is not None and unchanged:
                start, end = asked.removeprefix("bytes=").split("-")
                first = int(start) if start else max(len(content) - int(end), 0)
                last = min(int(end) + 1, len(content)) if start and end else len(content)
                if first >= len(content):
                    return self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
                status, headers["Content-Range"] = 206, f"bytes {first}-{last - 1}/{len(content)}"
        self.send(status, headers, content[first:last], fault)

    def send(self, status: int, headers: dict[str, str], body: bytes, fault: Fault) -> None:
        if fault.truncate is not None:
            body = body[: fault.truncate]
        self.send_response(status)
        length = {} if fault.unannounced else {"Content-Length": str(len(body))}
        self.close_connection |= fault.unannounced
        for name, value in {**headers, **length}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        time.sleep(fault.delay)
        cut = 0 if fault.hang and fault.cut is None else fault.cut
        self.wfile.write(body if cut is None else body[:cut])
        self.wfile.flush()
        if fault.hang:
            self.hub.closing.wait()
        if cut is not None:
            self.close_connection = True
            if fault.reset:
                time.sleep(0.1)  # a reset drops what the other side has not read
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(self.connection.detach())
            else:
                self.connection.shutdown(socket.SHUT_RDWR)
