"""Files from the network: resumed when cut, checked when whole, and one clear line when they cannot be had.

Files lie in `cache_folder()/files`. A hash that nobody pinned is recorded on first use in
`cache_folder()/hashes.json` and must be the same ever after.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import storage
from .errors import StorageError
from .filesystems import fsync
from .network import FULL, OF_REQUESTS, OFFLINE, DownloadError, check_environment, full_disk, public, reason, timeout
from .progress import Progress

if TYPE_CHECKING:
    import requests

log = logging.getLogger("consistency")

TRIES = 4  # in a row, none of which brought anything new
BACKOFF = 1.0  # seconds before the second try; doubled each time
_MB = 1 << 20
_REFUSALS = {
    401: "wants a login",
    403: "refuses access",
    404: "has no such file",
    410: "has no such file any more",
    407: "is a proxy that wants a login",
}


class _Retry(Exception):
    """A failure that another try may cure; the text is the reason."""


def cache_folder() -> Path:
    """$CONSISTENCY_CACHE, else `consistency` in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        DownloadError: none is set, and there is no home.
    """
    if chosen := os.environ.get("CONSISTENCY_CACHE"):
        return Path(os.path.expanduser(chosen))
    place = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(place):
        raise DownloadError("there is no home for the cache of downloads: set CONSISTENCY_CACHE to a folder")
    return Path(place) / "consistency"


def offline() -> bool:
    """Whether HF_HUB_OFFLINE or CONSISTENCY_OFFLINE forbids the network (1, true or yes)."""
    values = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "CONSISTENCY_OFFLINE"))
    return any(value.strip().lower() in ("1", "true", "yes", "on") for value in values)


def by_hand(url: str, name: str, sha256: str | None = None) -> str:
    """What a user without network can do: where to get the file `name`, and where to put it."""
    known = f" (sha256 {sha256})" if sha256 else ""
    return f"download {public(url)}{known} on a machine with network and put it at {_place(name)}"


def check_recorded(key: str, sha256: str, where: str) -> None:
    """Record `sha256` under `key` in the ledger on first use; ever after it must be the same.

    Raises:
        DownloadError: another one is recorded; `where` says whose.
        StorageError: the ledger cannot be read or written.
    """
    ledger = cache_folder() / "hashes.json"
    recorded = recorded_sha256(key)
    if recorded is None:
        with locked("hashes"):
            hashes = storage.read_json(ledger) if ledger.exists() else {}
            recorded = hashes.setdefault(key, sha256)
            if recorded == sha256:
                storage.write_json(ledger, hashes)
    if recorded != sha256:
        raise DownloadError(
            f"{where}: sha256 is {sha256}, but {recorded} was recorded on first use ({ledger}): damaged, or changed "
            "upstream; get it again, or pin the sha256 that you trust"
        )


def recorded_sha256(key: str) -> str | None:
    """The hash that the ledger holds for `key`, if any.

    Raises:
        StorageError: the ledger is not valid JSON.
    """
    ledger = cache_folder() / "hashes.json"
    return storage.read_json(ledger).get(key) if ledger.exists() else None


class Megabytes:
    """Progress of `total` bytes (None: unknown, nothing is told) in whole MB; may be called from several threads."""

    def __init__(self, total: int | None, what: str, start: int = 0):
        self._bytes, self._lock = start, threading.Lock()
        self._told = start // _MB
        self._progress = Progress(-(-total // _MB), f"{what} (MB)", self._told) if total else None

    def add(self, count: int) -> None:
        """Add `count` bytes."""
        with self._lock:
            self._bytes += count
            new = -(-self._bytes // _MB) - self._told
            if self._progress is not None and new > 0:
                self._told += new
                self._progress.update(new)


def fetch(url: str, name: str, sha256: str | None = None) -> Path:
    """The file `name` (may hold folders) of the cache, downloaded from `url` unless it is there; its hash is checked.

    Args:
        sha256: what its bytes must have; if None, what the ledger recorded on first use.

    Raises:
        DownloadError: no network, refused, not found, cut too often, or another content than expected.
        StorageError: the cache cannot be written or the disk is full.
    """
    path, instead = _place(name), by_hand(url, name, sha256)
    if not path.is_file():
        if offline():
            raise DownloadError(f"{name}: not in the cache, and offline is set ({OFFLINE}); unset it, or {instead}")
        with locked(f"files/{name}"):
            if not path.is_file():
                part = path.with_name(f"{path.name}.part")
                receive(url, name, part, instead)
                try:
                    _check(part, url, sha256, f"{name} from {public(url)} (removed, the next run starts afresh)")
                except DownloadError:
                    drop(part)
                    raise
                with _storing(path):
                    os.replace(part, path)
                    fsync(path.parent)
                    drop(part)
                return path
    _check(path, url, sha256, f"{path} (delete it to get it again)")
    return path


def _place(name: str) -> Path:
    if not Path(name).parts or ".." in Path(name).parts or Path(name).is_absolute():
        raise DownloadError(f"{name!r}: a file name inside the cache expected, no absolute path and no '..'")
    return cache_folder() / "files" / name


def _check(file: Path, url: str, sha256: str | None, where: str) -> None:
    found = storage.sha256(file)
    if sha256 is None:
        check_recorded(public(url), found, where)
    elif found != sha256.lower():
        raise DownloadError(f"{where}: sha256 is {found}, expected {sha256}")


def unwritten(error: OSError, path: Path, variable: str = "CONSISTENCY_CACHE") -> StorageError:
    """The error for a file of a cache that cannot be written; `variable` says where the cache is."""
    if error.errno in FULL:
        return StorageError(storage._explain(error, path))
    return StorageError(f"{path}: cannot be written ({error.strerror}); set {variable} to a writable folder")


@contextmanager
def _storing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritten(error, path) from error


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock `name`; other processes wait."""
    path = cache_folder() / "locks" / f"{name.replace('/', '--')}.lock"
    with _storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another job that holds %s", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sidecar(part: Path) -> Path:
    """Beside a partial file: its address, whole size and validator (strong ETag, or Last-Modified)."""
    return part.with_name(f"{part.name}.json")


def drop(part: Path) -> None:
    """Remove a partial file and what is kept of it."""
    part.unlink(missing_ok=True)
    _sidecar(part).unlink(missing_ok=True)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def receive(url: str, name: str, part: Path, instead: str, headers: dict[str, str] | None = None) -> None:
    """Download into `part`, resuming, until it is whole; `instead` says what else the user can do."""
    import requests
    from requests import exceptions as wrong
    from urllib3.exceptions import HTTPError

    where, best, failures = f"{name} from {public(url)}", _size(part), 0
    with requests.Session() as session:
        while True:
            try:
                check_environment(url, OF_REQUESTS)
                return _request(session, url, name, part, headers or {})
            except _Retry as error:
                why = str(error)
            except DownloadError as error:
                raise DownloadError(f"{where}: {error}; {instead}") from None
            except (wrong.InvalidURL, wrong.MissingSchema, wrong.InvalidSchema, wrong.SSLError) as error:
                raise DownloadError(f"{where}: {reason(error, url, OF_REQUESTS)}; {instead}") from None
            except (requests.RequestException, HTTPError) as error:
                if full := full_disk(error):
                    raise unwritten(full, part) from error
                why = reason(error, url, OF_REQUESTS)
            size = _size(part)
            failures = 1 if size > best else failures + 1
            best = max(best, size)
            if failures >= TRIES:
                raise DownloadError(f"{where}: {why} ({size} bytes are here); run again to continue, or {instead}")
            log.info("%s: %s after %d bytes; trying again", name, why, size)
            time.sleep(BACKOFF * 2 ** (failures - 1))


def _request(session: requests.Session, url: str, name: str, part: Path, headers: dict[str, str]) -> None:
    """One request for what is missing of `part`; returns when it is whole."""
    known = storage.read_json(_sidecar(part)) if part.exists() and _sidecar(part).exists() else {}
    start = _size(part) if known.get("validator") and known["url"] == public(url) else 0
    if start and start == known["size"]:
        return
    ask = {"Range": f"bytes={start}-", "If-Range": known["validator"]} if start else {}
    seconds = timeout()
    headers = {"Accept-Encoding": "identity", **headers, **ask}
    with session.get(url, headers=headers, stream=True, timeout=(min(seconds, 10.0), seconds)) as response:
        status, told = response.status_code, response.headers
        if status in (408, 429) or status >= 500:
            raise _Retry(f"the server answers {status}")
        if status not in (200, 206, 416):
            raise DownloadError(f"the server {_REFUSALS.get(status, 'answers')} ({status})")
        etag = told.get("ETag", "W/")
        validator = told.get("Last-Modified") if etag.startswith("W/") else etag
        span = re.fullmatch(rf"bytes {start}-\d+/(\d+)", told.get("Content-Range", ""))
        if status != 200 and not (start and span and validator in (None, known["validator"])):
            drop(part)
            raise _Retry(f"the server cannot resume ({status})")
        total = int(span[1] if span else told.get("Content-Length", 0)) or None
        bar = Megabytes(total, f"download {name}", start if status == 206 else 0)
        with _storing(part):
            part.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "ab" if status == 206 else "wb") as file:
                if status == 200:
                    kept = {"url": public(url), "size": total, "validator": validator}
                    storage.write_json(_sidecar(part), kept)
                for piece in response.raw.stream(1 << 18, decode_content=False):
                    file.write(piece)
                    bar.add(len(piece))
                file.flush()
                os.fsync(file.fileno())
    if total is not None and _size(part) != total:
        raise _Retry(f"truncated: {_size(part)} of {total} bytes came")
