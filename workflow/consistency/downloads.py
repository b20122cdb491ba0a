"""Files from the network: resumed when cut, checked when whole, and one clear line when they cannot be had.

Files lie in `cache_folder()/files`. A hash that nobody pinned is recorded on first use in
`cache_folder()/hashes.json` and must be the same ever after.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from . import storage
from .errors import ConsistencyError, StorageError
from .filesystems import fsync
from .progress import Progress

if TYPE_CHECKING:
    import requests

log = logging.getLogger("consistency")

TRIES = 4  # in a row, none of which brought anything new
BACKOFF = 1.0  # seconds before the second try; doubled each time
OFFLINE = "HF_HUB_OFFLINE or CONSISTENCY_OFFLINE"
_MB = 1 << 20
_REFUSALS = {401: "wants a login", 403: "refuses access", 404: "has no such file", 410: "has no such file any more"}
_REASONS = {  # what is found in the names of the exception and its causes; the first counts
    "OfflineMode": f"offline was set when the client was imported ({OFFLINE})",
    "ProxyError": "the proxy of the environment does not answer",
    "NameResolution|gaierror": "no network, or no such host",
    "SSL": "the host's certificate is not accepted",
    "ConnectTimeout|NewConnection|ConnectError": "no network, or the host does not answer",
    "Timeout": "no answer in time",
    "Invalid|Schema": "no address that can be used, http:// or https:// expected",
    "Redirects": "the server redirects in circles",
    "FileMetadata|JSON": "the answer is no hub's (a login page of the network, or a wrong HF_ENDPOINT?)",
    "IncompleteRead": "truncated, the connection was cut",
    "Protocol|Connection|ReadError": "the connection was cut",
}
_SECRETS = r"([?&][^=&#\s]*(?:token|key|sign|secret|passw|auth|credential)[^=&#\s]*=)[^&#\s]+"


class DownloadError(ConsistencyError):
    """A file that cannot be had from the network, or is not the one expected."""


class _Retry(Exception):
    """A failure that another try may cure; the text is the reason."""


def cache_folder() -> Path:
    """$CONSISTENCY_CACHE, else `consistency` in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("CONSISTENCY_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "consistency"


def offline() -> bool:
    """Whether HF_HUB_OFFLINE or CONSISTENCY_OFFLINE forbids the network (1, true or yes)."""
    values = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "CONSISTENCY_OFFLINE"))
    return any(value.strip().lower() in ("1", "true", "yes", "on") for value in values)


def timeout() -> float:
    """Seconds of silence after which a connection is given up: $CONSISTENCY_TIMEOUT, else 60.

    Raises:
        DownloadError: the variable is no positive number.
    """
    text = os.environ.get("CONSISTENCY_TIMEOUT", "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise DownloadError(f"CONSISTENCY_TIMEOUT: a number of seconds above 0 expected, got {text!r}")
    return seconds


def public(text: str) -> str:
    """`text` without what must not be shown: logins and signatures in addresses, the value of HF_TOKEN."""
    text = re.sub(_SECRETS, r"\1***", re.sub(r"://[^/@\s]*@", "://", text), flags=re.IGNORECASE)
    token = os.environ.get("HF_TOKEN", "").strip()
    return text.replace(token, "***") if token else text


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


def reachable(url: str, timeout: float = 3.0) -> bool:
    """Whether the address's host, or the proxy that the environment names for it, accepts a connection."""
    from requests.utils import get_environ_proxies, select_proxy

    target = select_proxy(url, get_environ_proxies(url, no_proxy=None)) or url
    parts = urlsplit(target if "://" in target else f"http://{target}")
    port = parts.port or {"https": 443, "socks5": 1080, "socks5h": 1080}.get(parts.scheme, 80)
    answered = threading.Event()

    def connect() -> None:
        try:
            with socket.create_connection((parts.hostname, port), timeout):
                answered.set()
        except (OSError, UnicodeError):
            pass

    attempt = threading.Thread(target=connect, daemon=True)  # looking up a name knows no timeout
    attempt.start()
    attempt.join(timeout)
    return answered.is_set()


def causes(error: BaseException | None) -> str:
    """The names of an exception's class and of its causes' classes, with spaces between."""
    names = []
    while error is not None:
        names.append(type(error).__name__)
        error = error.__cause__ or error.__context__
    return " ".join(names)


def reason(error: BaseException) -> str:
    """Why a connection failed, in words."""
    names = causes(error)
    unknown = f"{type(error).__name__}: {public(' '.join(str(error).split()))}"
    found = next((text for sign, text in _REASONS.items() if re.search(sign, names)), unknown)
    return found.replace("in time", f"for {timeout():g} s (CONSISTENCY_TIMEOUT)")


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
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
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
                return _request(session, url, name, part, headers or {})
            except _Retry as error:
                why = str(error)
            except DownloadError as error:
                raise DownloadError(f"{where}: {error}; {instead}") from None
            except (wrong.InvalidURL, wrong.MissingSchema, wrong.InvalidSchema, wrong.SSLError) as error:
                raise DownloadError(f"{where}: {reason(error)}; {instead}") from None
            except (requests.RequestException, HTTPError) as error:
                why = reason(error)
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
