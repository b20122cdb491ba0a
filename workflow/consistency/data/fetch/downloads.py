"""Files from the network: resumed when cut, checked when whole, and one clear line when they cannot be had.

Files lie in `cache_folder()/files`. A hash that nobody pinned is recorded on first use in
`cache_folder()/hashes.json` and must be the same ever after.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...addresses import public, whole
from ...errors import StorageError
from ...files import storage
from ...files.filesystems import fsync, no_link
from ...runtime.progress import Progress
from .network import FULL, OF_REQUESTS, OFFLINE, DownloadError, check_environment, full_disk, reason, timeout

if TYPE_CHECKING:
    from .session import Session

log = logging.getLogger("consistency")

SLOWEST = 1000  # bytes a second, over the time of `timeout`
UNANNOUNCED = 500_000_000  # bytes of a body whose size neither the server nor the configuration says
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
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(folder):
        raise DownloadError("there is no home for the cache of downloads: set CONSISTENCY_CACHE to a folder")
    return Path(folder) / "consistency"


def offline() -> bool:
    """Whether HF_HUB_OFFLINE or CONSISTENCY_OFFLINE forbids the network (1, true or yes)."""
    values = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "CONSISTENCY_OFFLINE"))
    return any(value.strip().lower() in ("1", "true", "yes", "on") for value in values)


def by_hand(url: str, name: str, sha256: str | None = None, path: Path | None = None) -> str:
    """What a user without network can do: where to get the file `name`, and where to put it."""
    pin = f" (sha256 {sha256})" if sha256 else ""
    return f"download {public(url)}{pin} on a machine with network and put it at {path or _path(name)}"


def check_recorded(key: str, sha256: str, where: str) -> None:
    """Record `sha256` under `key` in the ledger on first use; ever after it must be the same.

    Raises:
        DownloadError: another one is recorded; `where` says whose.
        StorageError: the ledger cannot be read or written.
    """
    ledger = cache_folder() / "hashes.json"
    if (recorded := recorded_sha256(key)) is None:
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
    """Progress of `total` bytes (None: unknown, nothing is shown) in whole MB; may be called from several threads."""

    def __init__(self, total: int | None, what: str, start: int = 0):
        self._bytes, self._lock = start, threading.Lock()
        self._shown = start // _MB
        self._progress = Progress(-(-total // _MB), f"{what} (MB)", self._shown) if total else None

    def add(self, count: int) -> None:
        """Add `count` bytes."""
        with self._lock:
            self._bytes += count
            new = -(-self._bytes // _MB) - self._shown
            if self._progress is not None and new > 0:
                self._shown += new
                self._progress.update(new)


def fetch(
    url: str,
    name: str,
    sha256: str | None = None,
    megabytes: int | None = None,
    path: Path | None = None,
    headers: dict[str, str] | None = None,
) -> Path:
    """The file `name` (may hold folders) of the cache, downloaded from `url` unless it is there; its hash is checked.

    Args:
        sha256: what its bytes must have; if None, what the ledger recorded on first use.
        megabytes: about how large it is, where that is known; a body of more than 1.1 times that is refused.
        path: where the file lies, if not in our cache.
        headers: for the server.

    Raises:
        DownloadError: no network, refused, not found, cut too often, or another content than expected.
        StorageError: the cache cannot be written or the disk is full.
    """
    instead, url, path = by_hand(url, name, sha256, path), whole(url), path or _path(name)
    if not path.is_file():
        if offline():
            raise DownloadError(f"{name}: not in the cache, and offline is set ({OFFLINE}); unset it, or {instead}")
        with locked(f"files/{name}"):
            if not path.is_file():
                part = path.with_name(f"{path.name}.part")
                receive(url, name, part, instead, headers, 1_100_000 * megabytes + _MB if megabytes else None)
                try:
                    _check(part, url, name, sha256, f"{name} from {public(url)} (removed, the next run starts afresh)")
                except DownloadError:
                    drop(part)
                    raise
                with _storing(path):
                    os.replace(part, path)
                    fsync(path.parent)
                    drop(part)
                return path
    _check(path, url, name, sha256, f"{path} (delete it to get it again)")
    return path


def _path(name: str) -> Path:
    if not Path(name).parts or ".." in Path(name).parts or Path(name).is_absolute():
        raise DownloadError(f"{name!r}: a file name inside the cache expected, no absolute path and no '..'")
    return cache_folder() / "files" / name


def _check(file: Path, url: str, name: str, sha256: str | None, where: str) -> None:
    digest = storage.sha256(file)
    if sha256 is None:  # of a hidden query the name stands for what it asks for
        check_recorded(f"{public(url)} {name}" if "?" in url else url, digest, where)
    elif digest != sha256.lower():
        raise DownloadError(f"{where}: sha256 is {digest}, expected {sha256}")


def unwritten(error: OSError, path: Path) -> StorageError:
    """The error for a file of our cache, or of the hub client's, that cannot be written."""
    if error.errno in FULL:
        return StorageError(storage.explain(error, path))
    variable = "CONSISTENCY_CACHE" if path.is_relative_to(cache_folder()) else "HF_HOME"
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
        file = open(path, "a", opener=no_link)  # noqa: SIM115
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


def receive(
    url: str, name: str, part: Path, instead: str, headers: dict[str, str] | None = None, most: int | None = None
) -> None:
    """Download into `part`, resuming, until it is whole.

    Args:
        instead: what else the user can do, for messages.
        most: bytes; by default what the server announces, or else `UNANNOUNCED`.

    Raises:
        DownloadError: no network, refused, cut too often, too slow, too large, or led from https to http.
        StorageError: `part` cannot be written or the disk is full.
    """
    from requests import RequestException
    from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema, SSLError, TooManyRedirects
    from urllib3.exceptions import HTTPError

    from .session import Session

    final = InvalidURL, MissingSchema, InvalidSchema, SSLError, TooManyRedirects  # another try would not help
    where, best, failures = f"{name} from {public(url)}", _size(part), 0
    with Session() as session:
        while True:
            try:
                check_environment(url, OF_REQUESTS)
                return _request(session, url, name, part, headers or {}, most)
            except _Retry as error:
                why = str(error)
            except DownloadError as error:
                raise DownloadError(f"{where}: {error}; {instead}") from None
            except final as error:
                raise DownloadError(f"{where}: {reason(error, url, OF_REQUESTS)}; {instead}") from None
            except (RequestException, HTTPError) as error:
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


def _request(session: Session, url: str, name: str, part: Path, headers: dict[str, str], most: int | None) -> None:
    """One request for what is missing of `part`; returns when it is whole."""
    kept = storage.read_json(_sidecar(part)) if part.exists() and _sidecar(part).exists() else {}
    start = _size(part) if kept.get("validator") and kept["url"] == public(url) else 0
    if start and start == kept["size"]:
        return
    ask = {"Range": f"bytes={start}-", "If-Range": kept["validator"]} if start else {}
    seconds = timeout()
    with session.answer(url, {"Accept-Encoding": "identity", **headers, **ask}, seconds) as response:
        status, answer = response.status_code, response.headers
        if status in (408, 429) or status >= 500:
            raise _Retry(f"the server answers {status}")
        if status not in (200, 206, 416):
            raise DownloadError(f"the server {_REFUSALS.get(status, 'answers')} ({status})")
        etag = answer.get("ETag", "W/")
        validator = answer.get("Last-Modified") if etag.startswith("W/") else etag
        span = re.fullmatch(rf"bytes {start}-\d+/(\d{{1,18}})", answer.get("Content-Range", ""))
        if status != 200 and not (start and span and validator in (None, kept["validator"])):
            drop(part)
            raise _Retry(f"the server cannot resume ({status})")
        length = span[1] if span else answer.get("Content-Length", "0").strip()
        if not re.fullmatch(r"[0-9]{1,18}", length):
            raise DownloadError(f"the server announces {length[:40]!r} bytes, a whole number below 10^18 expected")
        total = int(length) or None
        if most is not None and (total or 0) > most:
            raise DownloadError(f"the server announces {total} bytes; the configured size allows at most {most}")
        bar = Megabytes(total, f"download {name}", start if status == 206 else 0)
        with _storing(part):
            part.parent.mkdir(parents=True, exist_ok=True)
            if (missing := (total or 0) - start) > (free := shutil.disk_usage(part.parent).free):
                raise StorageError(
                    f"{part}: disk full: {missing / 1e6:.1f} MB are to come, {free / 1e6:.1f} MB are free; free some "
                    "space and run again"
                )
            with open(part, "ab" if status == 206 else "wb", opener=no_link) as file:
                if status == 200:
                    storage.write_json(_sidecar(part), {"url": public(url), "size": total, "validator": validator})
                limit = total or most or UNANNOUNCED
                for piece in _timely(response.raw, seconds):
                    if file.tell() + len(piece) > limit:
                        raise _too_large(part, total, most)
                    file.write(piece)
                    bar.add(len(piece))
                file.flush()
                os.fsync(file.fileno())
    if total is not None and _size(part) != total:
        raise _Retry(f"truncated: {_size(part)} of {total} bytes came")


def _too_large(part: Path, total: int | None, most: int | None) -> DownloadError:
    """The error for a body beyond its limit, of which nothing is kept."""
    drop(part)
    if total is None and most is None:
        return DownloadError(
            f"more than {UNANNOUNCED} bytes of a size that the server does not announce; state it as gigabytes beside "
            "the address"
        )
    who = "the server announced" if total else "the configured size allows"
    return DownloadError(f"more than {total or most} bytes came, which {who}")


def _timely(body: Any, seconds: float) -> Iterator[bytes]:
    """The pieces of a response's body, as they come.

    Raises:
        DownloadError: they come slower than `SLOWEST`, over so many seconds.
    """
    begin, count = time.monotonic(), 0
    while piece := body.read1(1 << 18, decode_content=False):
        yield piece
        count += len(piece)
        if (passed := time.monotonic() - begin) > seconds:
            if count < SLOWEST * passed:
                raise DownloadError(
                    f"less than {SLOWEST} bytes a second came for {seconds:g} s (CONSISTENCY_TIMEOUT); run again to "
                    "continue"
                )
            begin, count = time.monotonic(), 0
