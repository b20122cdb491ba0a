"""Files of a Hugging Face repository at one commit, through the standard client and its cache (HF_HOME).

The client does not check what it has: here every file is checked against the hash that the caller
pins, else against the hub's own, and against the ledger of `downloads`.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...addresses import public
from ...files import storage
from . import downloads, network
from .downloads import Megabytes, check_recorded, offline, recorded_sha256
from .network import OF_HUB, OFFLINE, DownloadError

log = logging.getLogger("consistency")

LARGE = 50_000_000  # bytes from which a file is fetched so that it goes on where a killed run stopped


def address(repo: str, revision: str) -> str:
    """The page of the repository's files at the endpoint (HF_ENDPOINT)."""
    return public(f"{_arguments()['endpoint']}/{repo}/tree/{revision}")


def by_hand(repo: str, revision: str, sha256: dict[str, str | None]) -> str:
    """What a user without network can do: where to get the repository's files, and where to put them."""
    hashes = "".join(f", sha256 of {name} {value}" for name, value in sha256.items() if value)
    return (
        f"run `hf download {repo} --revision {revision}` on a machine with network and copy its HF_HOME to "
        f"{_client().constants.HF_HOME}, or set teacher.source to the path of a folder with the files{hashes}"
    )


def is_cached(repo: str, revision: str, files: list[str]) -> bool:
    """Whether the client's cache holds all that the patterns name; the network is not asked.

    The client's listing of the repository decides, which its version 2 keeps after any snapshot; without a listing one
    file for each pattern is enough.

    Raises:
        DownloadError: the revision is no commit, the repository's name is none, or there is no pattern.
    """
    return bool(_cached(repo, revision, files))


def download(
    folder: str | Path, repo: str, revision: str, files: list[str], sha256: dict[str, str] | None = None
) -> None:
    """Write `folder`: the repository's files that the patterns name, in its sub-folders, and download.json.

    Files are hard links into the cache where that is possible, copies elsewhere.

    Args:
        revision: a commit, 40 hexadecimal digits.
        files: glob patterns, such as "unet/*" or "model_index.json"; each must match something.
        sha256: pinned hashes by file name. What is not pinned is checked against the hub's own hash, when there is
            network, and against the ledger, which records it on first use.

    Raises:
        DownloadError: no network and not cached, refused, not found, another commit, or another content.
        StorageError: the cache or `folder` cannot be written, or the disk is full.
    """
    pinned, cached, listing = sha256 or {}, _cached(repo, revision, files), {}
    where = f"{repo} ({address(repo, revision)})"
    if offline() and not cached:
        recorded = {name: pinned.get(name) or recorded_sha256(f"hub:{repo}@{revision}/{name}") for name in files}
        raise DownloadError(
            f"{where}: {files} not all in the cache, and offline is set ({OFFLINE}); unset it, or "
            f"{by_hand(repo, revision, pinned | recorded)}"
        )
    if not offline():
        ask = {"revision": revision, "files_metadata": True, "timeout": network.timeout()}
        api, info = _client().HfApi(**_arguments()), None
        try:
            info = _call(where, 1 if cached else downloads.TRIES, lambda: api.model_info(repo, **ask))
        except DownloadError as error:
            if not cached:
                raise
            log.info("%s; going on with the cached files", error)
        if info is not None:
            if info.sha != revision:
                raise _moved(where, info.sha)
            listing = {file.rfilename: file for file in info.siblings}
    if missing := _matching(where, listing, files) - cached.keys() if listing else set():
        for name in sorted(missing):
            if (large := listing[name].lfs) and large.size >= LARGE:
                _large(where, repo, revision, name, large)
        total = sum(listing[name].size or 0 for name in missing if not listing[name].lfs or listing[name].size < LARGE)
        ask = {"revision": revision, "allow_patterns": files, "tqdm_class": _bars(total, f"download {repo}")}
        _call(where, downloads.TRIES, lambda: _client().snapshot_download(repo, **ask, **_arguments()))
        cached = _cached(repo, revision, files)
        if lost := missing - cached.keys():
            raise _moved(where, f"another commit's {min(lost)}")
    if unused := pinned.keys() - cached.keys():
        raise DownloadError(f"{where}: sha256 pins {min(unused)!r}, which none of {files} names")
    checked = {
        name: _check(where, f"hub:{repo}@{revision}/{name}", name, path, pinned, listing.get(name))
        for name, path in cached.items()
    }
    _write(folder, cached, {"repo": repo, "revision": revision, "files": checked})


def obtain(folder: str | Path, source: dict[str, Any], megabytes: int | None = None) -> None:
    """Write `folder` from what is configured: a repository's files (repo, …), or one file (url, name, sha256).

    Args:
        megabytes: size of the one file, where it is known.

    Raises:
        DownloadError, StorageError: as `download` and `downloads.fetch` do.
    """
    if "repo" in source:
        return download(folder, **source)
    path = downloads.fetch(**source, megabytes=megabytes)
    line = {"sha256": storage.sha256(path), "size": path.stat().st_size}
    line["checked"] = "preset" if source.get("sha256") else "recorded"
    _write(folder, {path.name: path}, {"url": public(source["url"]), "files": {path.name: line}})


def _large(where: str, repo: str, revision: str, name: str, lfs: Any) -> None:
    """Fetch a large file to the path at which the client's cache has it.

    The client itself (2.4) downloads into a file of a random name and removes it when the download fails: after a cut
    or a kill it would begin the several gigabytes again.
    """
    client, asked = _client(), _arguments()
    folder = client.file_download.repo_folder_name(repo_id=repo, repo_type="model")
    blob = Path(client.constants.HF_HUB_CACHE, folder, "blobs", lfs.sha256)
    url = client.hf_hub_url(repo, name, revision=revision, endpoint=asked["endpoint"])
    options = {"megabytes": lfs.size // 1_000_000 + 1, "headers": client.utils.build_hf_headers(token=asked["token"])}
    if not blob.is_file():
        try:
            downloads.fetch(url, f"{repo}/{name}", lfs.sha256, path=blob, **options)
        except DownloadError as error:
            raise DownloadError(f"{where}: {error}; set HF_TOKEN if it needs a login") from None


def _write(folder: str | Path, files: dict[str, Path], record: dict[str, Any]) -> None:
    """Write `folder`: the files by name, hard links where that is possible, else copies, and download.json."""
    with storage.atomic(folder) as temporary:
        for name, path in files.items():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path.resolve(), target)
            except OSError:
                shutil.copyfile(path, target)
        storage.write_json(temporary / "download.json", record)


def _arguments() -> dict[str, Any]:
    """What every call of the client gets; a token comes from the environment only, never from a saved login."""
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    return {"token": os.environ.get("HF_TOKEN", "").strip() or False, "endpoint": endpoint}


def _client() -> Any:
    """The client's module: plain HTTP, no telemetry, its warnings in our log.

    It reads the environment once, when somebody first imports it; so its constants are set as well.
    """
    os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    import huggingface_hub
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_TELEMETRY = True
    constants.HF_HUB_OFFLINE, constants.HF_HUB_DOWNLOAD_TIMEOUT = offline(), network.timeout()
    logging.getLogger("huggingface_hub").handlers = [_ToLog()]
    logging.getLogger("huggingface_hub").propagate = False
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every address, with its signature
    return huggingface_hub


def _keep_to_https() -> None:
    """Have the client's session refuse redirects from https to http."""
    session = _client().get_session()
    if _refuse_way_down not in (hooks := session.event_hooks)["response"]:
        session.event_hooks = hooks | {"response": [*hooks["response"], _refuse_way_down]}


def _refuse_way_down(response: Any) -> None:
    """Raise where a response leads the client from https to http."""
    if response.has_redirect_location and response.request.url.scheme == "https":
        target = response.request.url.join(response.headers["location"])
        if target.scheme == "http":
            raise network.leads_down(str(target))


class _ToLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.log(record.levelno, "%s", public(" ".join(record.getMessage().split())))


def _bars(total: int, what: str) -> type:
    """The class that the client reports to: bytes from the network go to our progress, all else nowhere."""
    from tqdm import tqdm

    megabytes = Megabytes(total, what)

    class Bar(tqdm):
        def __init__(self, *args: Any, desc: str = "", **kwargs: Any):
            super().__init__(*args, desc=desc, **kwargs | {"disable": True})
            self.network = desc == "Downloading bytes"

        def update(self, n: float | None = 1) -> None:
            if self.network:
                megabytes.add(int(n or 0))

    return Bar


def _matching(where: str, names: Any, patterns: list[str]) -> set[str]:
    """The names that the patterns match.

    Raises:
        DownloadError: a pattern matches none.
    """
    from huggingface_hub.utils import filter_repo_objects

    matches = {pattern: set(filter_repo_objects(names, allow_patterns=[pattern])) for pattern in patterns}
    if idle := [pattern for pattern in patterns if not matches[pattern]]:
        shown = ", ".join(sorted(names)[:40]) + (", …" if len(names) > 40 else "")
        raise DownloadError(f"{where}: no file matches {idle[0]!r}; the repository has {shown}")
    return set().union(*matches.values())


def _cached(repo: str, revision: str, files: list[str]) -> dict[str, Path]:
    """The cached files by name; empty when one is missing."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or not re.fullmatch(r"[0-9a-f]{40}", revision) or not files:
        raise DownloadError(
            f"{repo!r}, revision {revision!r}, files {files}: owner/name, a commit of 40 hexadecimal digits and at "
            "least one pattern expected"
        )
    client, ask = _client(), {"revision": revision, "allow_patterns": files, "local_files_only": True}
    try:
        folder = Path(client.snapshot_download(repo, **ask, **_arguments()))
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        return {name: folder / name for name in sorted(_matching(repo, names, files))}
    except (client.errors.LocalEntryNotFoundError, DownloadError):
        return {}


def _check(where: str, key: str, name: str, path: Path, pinned: dict, listed: Any) -> dict[str, Any]:
    """The file's line of download.json, once its hash is the right one; `listed` is the hub's line, or None."""
    from huggingface_hub.utils.sha import git_hash

    digest, expected, checked = storage.sha256(path), pinned.get(name), "preset"
    hashed, wrong = digest, f"{where}: {name} (delete {path.resolve()} to get it again)"
    if expected is None and listed is not None:
        expected, checked = listed.lfs.sha256 if listed.lfs else listed.blob_id, "hub"
        hashed = digest if listed.lfs else git_hash(path.read_bytes())
    if expected is not None and hashed != expected.lower():
        raise DownloadError(f"{wrong}: hash is {hashed}, expected {expected} ({checked})")
    if checked != "preset" or expected is None:
        check_recorded(key, digest, wrong)
    return {"sha256": digest, "size": path.stat().st_size, "checked": checked if expected else "recorded"}


def _moved(where: str, commit: str) -> DownloadError:
    return DownloadError(f"{where}: revision moved: the hub answers with {commit}; pin a commit that it has")


def _call(where: str, tries: int, function: Callable[[], Any]) -> Any:
    """Call the client; what another try may cure is tried again, and its exceptions become one line.

    Files that are whole stay in the cache. The client goes on with a file whose connection ends within the call, but
    keeps no partial file after it.
    """
    for failures in range(1, tries + 1):
        try:
            network.check_environment(_arguments()["endpoint"], OF_HUB)
            _keep_to_https()
            return function()
        except DownloadError as error:
            raise DownloadError(f"{where}: {error}") from None
        except Exception as raised:
            tried = type(raised).__name__ == "LocalEntryNotFoundError"  # the client did, and looked into its cache then
            error = (tried and raised.__cause__) or raised
            status = getattr(getattr(error, "response", None), "status_code", 0)
            cut = re.search("ReadError|RemoteProtocolError|ConnectError", network.causes(error))
            explained = _explained(error, where, status)
            if failures == tries or tried or not (cut or status == 429 or status >= 500):
                raise explained from None
            log.info("%s; trying again", explained)
        time.sleep(downloads.BACKOFF * 2 ** (failures - 1))


def _explained(error: BaseException, where: str, status: int) -> Exception:
    """One line for an exception of the client."""
    names = network.causes(error)
    of_network = isinstance(error, ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError)
    local = error if isinstance(error, OSError) and error.errno is not None and not of_network else None
    if written := network.full_disk(error) or local:
        return downloads.unwritten(written, Path(_client().constants.HF_HUB_CACHE))
    if status in (401, 403):
        why = "the HF_TOKEN of the environment is not enough" if _arguments()["token"] else "no token was sent"
        line = f"login wanted ({status}), {why}; set HF_TOKEN in the environment, and accept the terms at the address"
    elif status == 407:
        line = f"the proxy {network.proxy_of(_arguments()['endpoint'])} wants a login (407)"
    elif "RevisionNotFound" in names:
        line = f"the repository has no such commit ({status}); pin one that it has"
    elif status == 404:
        line = "no such repository or file (404); check its name, and set HF_TOKEN in the environment if it is private"
    elif status:
        line = f"the hub answers {status}; run again to continue"
    elif "Consistency check failed" in str(error):
        line = f"truncated: {' '.join(str(error).split())}"
    else:
        why = network.reason(error, _arguments()["endpoint"], OF_HUB)
        line = f"{why}; run again to continue (files that are whole are kept)"
    return DownloadError(public(f"{where}: {line}"))
