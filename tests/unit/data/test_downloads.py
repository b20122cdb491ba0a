"""Downloads against a server of this machine: whole or refused, resumed, checked, and one clear line each time."""

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from certificates import KEY, VALID
from consistency.data.fetch import downloads, hub
from consistency.data.fetch.downloads import DownloadError, fetch
from consistency.data.fetch.network import unreachable
from consistency.errors import StorageError
from consistency.files import storage
from helpers import wait_for
from hubserver import COMMIT, SIGNATURE, HubServer

REPO = "owner/tiny"
FILES = ["model_index.json", "unet/*"]
TOKEN = "hf_SoSecretThatNobodyMaySeeIt"
BIG = bytes(range(256)) * 8000  # 2 MB, served as LFS
SMALL = b'{"_class_name": "StableDiffusionXLPipeline"}'


def digest(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, caplog):
    """An empty cache of our own, network allowed, quick retries."""
    caplog.set_level(logging.INFO)
    for name in (
        "HF_TOKEN",
        "CONSISTENCY_OFFLINE",
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "CONSISTENCY_CACHE": str(tmp_path / "cache"),
        "CONSISTENCY_TIMEOUT": "5",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
        "NO_PROXY": "127.0.0.1,localhost",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(downloads, "BACKOFF", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path):
    root = tmp_path / "root"
    for name, content in {"model_index.json": SMALL, "unet/big.safetensors": BIG, "unet/config.json": b"{}"}.items():
        (root / REPO / name).parent.mkdir(parents=True, exist_ok=True)
        (root / REPO / name).write_bytes(content)
    (root / "x.bin").write_bytes(BIG)
    with HubServer(root) as server:
        yield server


@pytest.fixture
def client(server, monkeypatch, tmp_path):
    """The real client, pointed to the server and to an empty HF_HOME; gives the cache's folder of the repository."""
    from huggingface_hub import _tree_cache, constants, file_download
    from huggingface_hub.utils import _http

    for module in (file_download, _http):  # its retries wait for up to 8 s
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(constants, name, getattr(constants, name))  # restored after the test
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    monkeypatch.setattr(_tree_cache, "_IN_MEMORY_TREE_CACHE", {})
    return tmp_path / "hf" / "hub" / "models--owner--tiny"


def refused(call, *words, error=DownloadError):
    """The error's one line, which holds all the words."""
    with pytest.raises(error) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line
    return line


def get(server, name="x.bin", sha256=None, path="x.bin"):
    return fetch(f"{server.url}/{path}", name, sha256)


def left(folder):
    """The files of a folder, without the locks."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_a_hub_does_not_lead_from_https_to_http(server, client, tmp_path, monkeypatch):
    """Its content lies behind a redirect to another host; one with http:// is not followed, by neither of both ways."""
    certificate = tmp_path / "certificate.pem"
    certificate.write_text(KEY + VALID)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    huggingface_hub.close_session()
    with HubServer(server.root, certificate=certificate) as secure:
        monkeypatch.setenv("HF_ENDPOINT", secure.url)
        for limit in (hub.LARGE, 1000):
            monkeypatch.setattr(hub, "LARGE", limit)
            line = refused(lambda: hub.download(tmp_path / "out", REPO, COMMIT, FILES), "from https to http")
            assert SIGNATURE not in line
    assert server.came("big.safetensors") == []
    huggingface_hub.close_session()


# Plain files


def test_a_file_is_downloaded_once_and_is_whole(server, cache):
    path = get(server, "weights/x.bin", digest(BIG))
    assert path == cache / "files" / "weights" / "x.bin"
    assert path.read_bytes() == BIG
    assert get(server, "weights/x.bin", digest(BIG).upper()) == path
    assert len(server.requests) == 1
    assert left(cache) == ["files/weights/x.bin"]


def test_a_cut_connection_is_resumed(server, caplog):
    server.fail("x.bin", cut=600_000, times=1)
    server.fail("x.bin", cut=600_000, reset=True, times=1)
    assert get(server, sha256=digest(BIG)).read_bytes() == BIG
    ranges = [request.headers.get("range") for request in server.came("x.bin")]
    starts = [int(re.fullmatch(r"bytes=(\d+)-", text)[1]) for text in ranges[1:]]
    assert ranges[0] is None and 0 < starts[0] <= 600_000 and starts[0] < starts[1] < len(BIG)
    assert server.came("x.bin")[1].headers["if-range"] == f'"{digest(BIG)}"'
    assert "trying again" in caplog.text


def test_only_tries_that_bring_nothing_count(server):
    server.fail("x.bin", cut=300_000, times=downloads.TRIES + 2)
    assert get(server).read_bytes() == BIG
    assert len(server.requests) == downloads.TRIES + 3


def test_a_killed_download_goes_on(server, cache):
    server.fail("x.bin", cut=1_000_000, hang=True, times=1)
    code = f"from consistency.data.fetch.downloads import fetch; fetch('{server.url}/x.bin', 'x.bin')"
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": "workflow"})
    part = cache / "files" / "x.bin.part"
    wait_for(lambda: part.exists() and part.stat().st_size > 500_000, "more than 500 kB of the file", process=process)
    process.kill()
    process.wait()
    kept = part.stat().st_size
    assert get(server).read_bytes() == BIG
    assert server.came("x.bin")[1].headers["range"] == f"bytes={kept}-"
    assert left(cache) == ["files/x.bin", "hashes.json"]


@pytest.mark.parametrize("how", ["changed", "changed unnoticed", "no ranges", "no validators"])
def test_what_cannot_be_resumed_starts_over(server, cache, monkeypatch, how):
    monkeypatch.setattr(downloads, "TRIES", 1)
    server.fail("x.bin", cut=600_000, times=1)
    server.validators = how != "no validators"
    refused(lambda: get(server), "truncated", f"of {server.url}"[3:], "run again to continue")
    expected = BIG[::-1] if "changed" in how else BIG
    (server.root / "x.bin").write_bytes(expected)
    server.ignore_if_range = "unnoticed" in how  # the server goes on with another file
    monkeypatch.setattr(downloads, "TRIES", 2)
    server.ranges = how != "no ranges"
    assert get(server).read_bytes() == expected
    assert ("range" in server.came("x.bin")[1].headers) == (how != "no validators")


def test_a_file_that_stays_truncated(server, cache):
    server.ranges = False
    server.fail("x.bin", cut=600_000)
    refused(lambda: get(server), "x.bin from http://127", "truncated", "bytes are here", "on a machine with network")
    assert len(server.requests) == downloads.TRIES
    assert "files/x.bin" not in left(cache)


def test_a_wrong_hash_removes_the_download(server, cache):
    server.fail("x.bin", content=b"an error page", times=1)
    refused(lambda: get(server, sha256=digest(BIG)), digest(b"an error page"), f"expected {digest(BIG)}", "afresh")
    assert left(cache) == []
    assert get(server, sha256=digest(BIG)).read_bytes() == BIG
    assert "range" not in server.requests[-1].headers


def test_a_truncated_file_with_the_truncated_length_is_caught_by_the_hash(server):
    server.fail("x.bin", truncate=1000)
    refused(lambda: get(server, sha256=digest(BIG)), digest(BIG[:1000]), "expected")


def test_server_errors_are_tried_again(server):
    server.fail("x.bin", status=503, times=2)
    assert get(server).read_bytes() == BIG
    server.fail("x.bin", status=500)
    refused(lambda: get(server, "y.bin"), "the server answers 500", "y.bin", "put it at")
    assert len(server.requests) == 3 + downloads.TRIES


@pytest.mark.parametrize(("status", "words"), [(401, "wants a login"), (403, "refuses"), (404, "has no such file")])
def test_refusals_are_told_at_once(server, status, words):
    server.fail("x.bin", status=status)
    refused(lambda: get(server, sha256="0" * 64), words, str(status), f"{server.url}/x.bin", "0" * 64, "put it at")
    assert len(server.requests) == 1


def test_no_network(server):
    server.__exit__()
    refused(lambda: get(server), "the host does not answer", f"{server.url}/x.bin", "on a machine with network")
    refused(lambda: fetch("http://no-such-host.invalid/x", "x"), "no such host", "no-such-host.invalid/x")
    refused(lambda: fetch("ftp:x", "x"), "http:// or https:// expected")
    refused(lambda: fetch("http://x/y", "../y"), "no absolute path")


def test_a_hung_download_ends(server, monkeypatch):
    monkeypatch.setenv("CONSISTENCY_TIMEOUT", "0.3")
    monkeypatch.setattr(downloads, "TRIES", 2)
    server.fail("x.bin", cut=600_000, hang=True, times=1)
    server.fail("x.bin", hang=True)
    began = time.monotonic()
    refused(lambda: get(server), "no answer for 0.3 s (CONSISTENCY_TIMEOUT)", "600000 bytes are here")
    assert time.monotonic() - began < 300  # the usual limit is 60 s
    monkeypatch.setenv("CONSISTENCY_TIMEOUT", "soon")
    refused(lambda: get(server), "CONSISTENCY_TIMEOUT: a number of seconds above 0 expected, got 'soon'")


def test_recorded_on_first_use_and_refused_when_it_changes(server, cache):
    get(server)
    assert storage.read_json(cache / "hashes.json") == {f"{server.url}/x.bin": digest(BIG)}
    (cache / "files" / "x.bin").unlink()
    (server.root / "x.bin").write_bytes(b"new")
    refused(lambda: get(server), digest(b"new"), digest(BIG), "recorded on first use", "changed upstream")
    assert left(cache) == ["hashes.json"]
    assert get(server, sha256=digest(b"new")).read_bytes() == b"new"  # a pin outweighs the record


@pytest.mark.parametrize("pinned", [True, False])
def test_a_flipped_bit_in_the_cache_is_caught(server, pinned):
    sha256 = digest(BIG) if pinned else None
    path = get(server, sha256=sha256)
    path.write_bytes(BIG[:-1] + bytes([BIG[-1] ^ 1]))
    refused(lambda: get(server, sha256=sha256), str(path), "delete it to get it again", digest(BIG))
    path.unlink()
    assert get(server, sha256=sha256).read_bytes() == BIG


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "CONSISTENCY_OFFLINE"])
def test_offline(server, cache, monkeypatch, name):
    get(server)
    server.requests.clear()
    monkeypatch.setenv(name, "true")
    assert get(server).read_bytes() == BIG
    refused(
        lambda: get(server, "y.bin", "f" * 64), name, f"{server.url}/x.bin", "f" * 64, str(cache / "files" / "y.bin")
    )
    (cache / "files" / "y.bin").write_bytes(BIG)  # put there by hand
    refused(lambda: get(server, "y.bin", "f" * 64), digest(BIG), "expected " + "f" * 64)
    assert get(server, "y.bin", digest(BIG)).read_bytes() == BIG
    assert server.requests == []


def test_by_hand(cache):
    assert downloads.by_hand("https://me:pw@host/a.pt?download=1&Signature=abc", "a.pt", "12ab") == (
        f"download https://host/a.pt?… (sha256 12ab) on a machine with network and put it at {cache}/files/a.pt"
    )
    assert "sha256" not in downloads.by_hand("https://host/a.pt", "a.pt", None)


def test_credentials_of_an_address_are_shown_nowhere(server, cache, caplog):
    address = server.url.replace("//", "//me:passw0rd@") + "/x.bin?access_token=s3cret"
    server.fail("x.bin", cut=600_000, times=1)
    fetch(address, "x.bin")
    assert server.requests[0].headers["authorization"].startswith("Basic ") and "s3cret" in server.requests[0].query
    server.fail("x.bin", status=404)
    text = refused(lambda: fetch(address, "y.bin"), "/x.bin?…: the server has no such file") + caplog.text
    text += "".join((cache / name).read_text(errors="replace") for name in left(cache))
    assert "passw0rd" not in text and "s3cret" not in text


def test_full_disk(server, small_disk, monkeypatch):
    monkeypatch.setenv("CONSISTENCY_CACHE", str(small_disk))
    line = refused(lambda: get(server), "x.bin.part: disk full: 2.0 MB are to come, ", error=StorageError)
    assert line.endswith(" MB are free; free some space and run again")
    server.fail("x.bin", unannounced=True)
    refused(lambda: get(server), "x.bin.part: disk full while writing", error=StorageError)


def test_unwritable_cache(server, monkeypatch):
    monkeypatch.setenv("CONSISTENCY_CACHE", "/proc/cache")
    refused(lambda: get(server), "/proc/cache", "set CONSISTENCY_CACHE to a writable folder", error=StorageError)


def test_two_processes_download_once(server, cache):
    server.fail("x.bin", delay=0.5)
    code = f"from consistency.data.fetch.downloads import fetch; print(fetch('{server.url}/x.bin', 'x.bin'))"
    run = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": "workflow"}
    pair = [subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {process.communicate(timeout=30)[0].strip() for process in pair} == {str(cache / "files" / "x.bin")}
    assert [process.returncode for process in pair] == [0, 0]
    assert len(server.requests) == 1


def test_reachable(server, monkeypatch):
    assert not unreachable(server.url)
    monkeypatch.setenv("http_proxy", server.url)
    assert not unreachable("http://no-such-host.invalid/")
    monkeypatch.delenv("http_proxy")
    began = time.monotonic()
    assert unreachable("http://no-such-host.invalid/", timeout=1) == "no network"
    server.__exit__()
    assert unreachable(server.url, timeout=1) == "no network"
    assert time.monotonic() - began < 30


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("CONSISTENCY_CACHE", "~/c")
    assert downloads.cache_folder() == Path.home() / "c"
    monkeypatch.delenv("CONSISTENCY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert downloads.cache_folder() == Path("/x/consistency")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert downloads.cache_folder() == Path.home() / ".cache" / "consistency"


# The hub


def test_a_repository_is_downloaded_checked_and_linked(client, server, tmp_path):
    hub.download(tmp_path / "out", REPO, COMMIT, FILES, {"model_index.json": digest(SMALL)})
    assert left(tmp_path / "out") == [
        "SHA256SUMS",
        "download.json",
        "model_index.json",
        "unet/big.safetensors",
        "unet/config.json",
    ]
    assert (tmp_path / "out" / "unet" / "big.safetensors").read_bytes() == BIG
    assert (tmp_path / "out" / "unet" / "big.safetensors").samefile(client / "blobs" / digest(BIG))
    assert storage.read_json(tmp_path / "out" / "download.json") == {
        "repo": REPO,
        "revision": COMMIT,
        "files": {
            "model_index.json": {"sha256": digest(SMALL), "size": len(SMALL), "checked": "preset"},
            "unet/big.safetensors": {"sha256": digest(BIG), "size": len(BIG), "checked": "hub"},
            "unet/config.json": {"sha256": digest(b"{}"), "size": 2, "checked": "hub"},
        },
    }
    assert hub.address(REPO, COMMIT) == f"{server.url}/{REPO}/tree/{COMMIT}"
    assert not any("torch" in request.headers["user-agent"] for request in server.requests)


def test_the_clients_resume_gives_whole_bytes(client, server, tmp_path):
    server.fail("big.safetensors", cut=1_000_000, times=1)
    server.fail("big.safetensors", cut=500_000, reset=True, times=1)  # after which the client starts over
    hub.download(tmp_path / "out", REPO, COMMIT, FILES)
    assert (tmp_path / "out" / "unet" / "big.safetensors").read_bytes() == BIG
    first, second, third = (
        request.headers.get("range") for request in server.came("big.safetensors") if request.path.startswith("/cdn")
    )
    assert first is None and 0 < int(re.fullmatch(r"bytes=(\d+)-", second)[1]) <= 1_000_000 and third is None


def test_a_large_file_goes_on_after_a_kill_in_the_clients_own_cache(client, server, tmp_path, monkeypatch, cache):
    """The client itself keeps no partial file; the token goes to the hub and not to the place it redirects to."""
    server.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.fail("big.safetensors", cut=1_000_000, hang=True, times=1)
    code = f"from consistency.data.fetch import hub; hub.LARGE = 1000; hub.download('out', {REPO!r}, {COMMIT!r}, {FILES!r})"
    environment = {**os.environ, "PYTHONPATH": str(Path("workflow").resolve())}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=tmp_path)
    home = Path(os.environ["HF_HOME"])
    (part,) = wait_for(
        lambda: [path for path in home.rglob("*.part") if path.stat().st_size > 500_000],
        "a part of more than 500 kB",
        process=process,
        seen=lambda: {str(path): path.stat().st_size for path in home.rglob("*")},
    )
    process.kill()
    process.wait()
    kept = part.stat().st_size
    monkeypatch.setattr(hub, "LARGE", 1000)
    hub.download(tmp_path / "out", REPO, COMMIT, FILES)
    assert (tmp_path / "out" / "unet" / "big.safetensors").read_bytes() == BIG
    sent = [request for request in server.came("big.safetensors") if request.path.startswith("/cdn")]
    assert sent[-1].headers["range"] == f"bytes={kept}-" and 500_000 < kept < len(BIG)
    assert all("authorization" not in request.headers for request in sent)
    assert not list(home.rglob("*.part*"))
    assert hub.is_cached(REPO, COMMIT, FILES)


def test_the_token_is_sent_to_the_hub_only_and_shown_nowhere(client, server, tmp_path, monkeypatch, caplog):
    server.token = TOKEN
    line = refused(
        lambda: hub.download(tmp_path / "out", REPO, COMMIT, FILES), "401", "set HF_TOKEN", hub.address(REPO, COMMIT)
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN + "x")
    line += refused(
        lambda: hub.download(tmp_path / "out", REPO, COMMIT, FILES), "401", "HF_TOKEN of the environment is not enough"
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN + "\n")
    server.fail("big.safetensors", cut=1_000_000, times=1)
    hub.download(tmp_path / "out", REPO, COMMIT, FILES)
    server.fail("*/revision/*", status=403, headers={"X-Error-Code": "GatedRepo"}, times=1)
    line += refused(lambda: hub.download(tmp_path / "out", REPO, COMMIT, ["unet/x*"]), "403", "accept the terms")
    assert "trying" in caplog.text.lower()
    for text in (line, caplog.text):
        assert TOKEN not in text and SIGNATURE not in text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()
    sent = {request.path.split("/")[1] for request in server.requests if "authorization" in request.headers}
    assert sent == {"api", "owner"} and server.came("big.safetensors")


def test_a_saved_login_is_not_used(client, server, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(TOKEN)
    hub.download(tmp_path / "out", REPO, COMMIT, FILES)
    assert not any("authorization" in request.headers for request in server.requests)


def test_a_moved_revision(client, server, tmp_path):
    server.moved = "f" * 40
    refused(lambda: hub.download(tmp_path / "out", REPO, COMMIT, FILES), "revision moved", COMMIT, "f" * 40)
    assert not (tmp_path / "out").exists()


def test_files_of_another_commit(client, server, tmp_path, monkeypatch):
    honest = server.commit
    monkeypatch.setattr(server, "commit", lambda revision: honest(revision) if len(server.requests) < 2 else "f" * 40)
    refused(lambda: hub.download(tmp_path / "out", REPO, COMMIT, FILES), "revision moved", "model_index.json")


def test_what_is_not_there(client, server, tmp_path):
    out = tmp_path / "out"
    refused(lambda: hub.download(out, REPO, COMMIT, ["vae/*"]), "no file matches 'vae/*'", "unet/big.safetensors")
    refused(lambda: hub.download(out, "owner/none", COMMIT, FILES), "owner/none", "no such repository", "404")
    refused(lambda: hub.download(out, REPO, "e" * 40, FILES), "no such commit", "e" * 40)
    refused(lambda: hub.download(out, REPO, "main", FILES), "'main'", "40 hexadecimal digits")
    refused(lambda: hub.download(out, "no repo!", COMMIT, FILES), "owner/name")
    refused(lambda: hub.download(out, REPO, COMMIT, FILES, {"unet/bg": "0" * 64}), "sha256 pins 'unet/bg'", "unet/*")
    assert not out.exists()


def test_a_wrong_hash_names_the_blob(client, server, tmp_path):
    blob = client / "blobs" / digest(BIG)
    pins = {"unet/big.safetensors": "0" * 64}
    refused(
        lambda: hub.download(tmp_path / "out", REPO, COMMIT, FILES, pins),
        str(blob),
        digest(BIG),
        "expected " + "0" * 64,
        "preset",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["unet/big.safetensors", "unet/config.json"])
def test_another_content_than_the_hub_tells_is_refused(client, server, tmp_path, name):
    size = (server.root / REPO / name).stat().st_size
    server.fail(name, content=b"x" * size)
    refused(lambda: hub.download(tmp_path / "out", REPO, COMMIT, FILES), name, "expected", "(hub)", "delete ")


def test_a_truncated_file_of_the_hub(client, server, tmp_path):
    server.fail("big.safetensors", truncate=1000)
    refused(lambda: hub.download(tmp_path / "out", REPO, COMMIT, FILES), "truncated", str(len(BIG)), "1000")
    assert not hub.is_cached(REPO, COMMIT, FILES)


@pytest.mark.parametrize("how", ["online", "recorded", "pinned"])
def test_a_flipped_bit_in_a_blob_is_caught(client, server, tmp_path, monkeypatch, how):
    hub.download(tmp_path / "out", REPO, COMMIT, FILES)
    blob = client / "blobs" / digest(BIG)
    content = bytearray(BIG)
    content[1234] ^= 4
    blob.write_bytes(content)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0" if how == "online" else "1")
    pins = {"unet/big.safetensors": digest(BIG)} if how == "pinned" else None
    refused(
        lambda: hub.download(tmp_path / "again", REPO, COMMIT, FILES, pins),
        f"delete {blob}",
        digest(content),
        digest(BIG),
    )
    blob.unlink()
    assert not hub.is_cached(REPO, COMMIT, FILES)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub.download(tmp_path / "again", REPO, COMMIT, FILES, pins)
    assert (tmp_path / "again" / "unet" / "big.safetensors").read_bytes() == BIG


def test_the_hub_offline(client, server, tmp_path, monkeypatch):
    hub.download(tmp_path / "out", REPO, COMMIT, ["model_index.json"])
    server.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.download(tmp_path / "again", REPO, COMMIT, ["model_index.json"])
    told = json.loads((tmp_path / "again" / "download.json").read_text())["files"]
    assert told == {"model_index.json": {"sha256": digest(SMALL), "size": len(SMALL), "checked": "recorded"}}
    assert hub.is_cached(REPO, COMMIT, ["model_index.json"])
    assert not hub.is_cached(REPO, COMMIT, FILES) and not hub.is_cached(REPO, "e" * 40, FILES)
    pins = {"unet/big.safetensors": "a" * 64}
    refused(
        lambda: hub.download(tmp_path / "no", REPO, COMMIT, FILES, pins),
        *(REPO, COMMIT, "unet/*", hub.address(REPO, COMMIT), "a" * 64, digest(SMALL)),
        *(
            f"hf download {REPO} --revision {COMMIT}",
            "copy its HF_HOME",
            "set teacher.source to the path",
            "HF_HUB_OFFLINE",
        ),
    )
    assert server.requests == []


def test_a_cache_without_listing_is_completed_online(client, server, tmp_path):
    """As older clients leave it: some files of a pattern are there, and nothing says that others are not."""
    hub.download(tmp_path / "out", REPO, COMMIT, ["unet/config.json"])
    for listing in (client / "trees").iterdir():
        listing.unlink()
    from huggingface_hub import _tree_cache

    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    assert hub.is_cached(REPO, COMMIT, ["unet/*"])
    hub.download(tmp_path / "again", REPO, COMMIT, ["unet/*"])
    assert (tmp_path / "again" / "unet" / "big.safetensors").read_bytes() == BIG


def test_a_cached_repository_needs_no_network(client, server, tmp_path, caplog):
    hub.download(tmp_path / "out", REPO, COMMIT, FILES)
    server.__exit__()
    hub.download(tmp_path / "again", REPO, COMMIT, FILES)
    assert "going on with the cached files" in caplog.text
    refused(lambda: hub.download(tmp_path / "no", REPO, "e" * 40, FILES), "the host does not answer", "run again")


def test_a_busy_or_hung_hub(client, server, tmp_path, monkeypatch):
    server.fail("*/revision/*", status=503, times=2)
    server.fail("config.json", status=500, times=1)
    server.fail("big.safetensors", status=500, method="HEAD", times=1)
    hub.download(tmp_path / "out", REPO, COMMIT, FILES)
    server.fail("big.safetensors", status=503, method="HEAD")
    shutil.rmtree(client)
    server.requests.clear()
    refused(lambda: hub.download(tmp_path / "no", REPO, COMMIT, FILES), "the hub answers 503", "run again")
    assert len(server.came("big.safetensors", "HEAD")) == 7  # the client's own retries, which are not multiplied
    server.fail("*/revision/*", content=b"<html>please log in", times=1)
    refused(lambda: hub.download(tmp_path / "no", REPO, COMMIT, FILES), "the answer is no hub's", "login page")
    monkeypatch.setenv("CONSISTENCY_TIMEOUT", "0.3")
    server.fail("*/revision/*", hang=True)
    began = time.monotonic()
    refused(lambda: hub.download(tmp_path / "no", REPO, COMMIT, ["vae/*"]), "no answer for 0.3 s (CONSISTENCY_TIMEOUT)")
    assert time.monotonic() - began < 30


def test_changed_upstream_under_the_same_commit(client, server, tmp_path):
    hub.download(tmp_path / "out", REPO, COMMIT, FILES)
    shutil.rmtree(client)
    (server.root / REPO / "unet" / "big.safetensors").write_bytes(BIG[::-1])
    from huggingface_hub import _tree_cache

    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    refused(
        lambda: hub.download(tmp_path / "again", REPO, COMMIT, FILES),
        "recorded on first use",
        digest(BIG),
        digest(BIG[::-1]),
    )


@pytest.mark.filterwarnings("ignore:Not enough free disk space")
def test_full_disk_and_copies_instead_of_links(client, server, small_disk, tmp_path, monkeypatch):
    from huggingface_hub import constants

    hub.download(small_disk / "out", REPO, COMMIT, ["*.json"])  # another file system: copied
    assert (small_disk / "out" / "unet" / "config.json").read_bytes() == b"{}"
    refused(
        lambda: hub.download(small_disk / "out", REPO, COMMIT, FILES), "disk full while writing", error=StorageError
    )
    assert left(small_disk) == ["out/SHA256SUMS", "out/download.json", "out/model_index.json", "out/unet/config.json"]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(small_disk / "hub"))
    refused(lambda: hub.download(tmp_path / "out", REPO, COMMIT, FILES), "disk full while writing", error=StorageError)


def test_an_unwritable_hf_home(client, server, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/hub")
    for limit in (hub.LARGE, 1000):  # the client writes, and we do
        monkeypatch.setattr(hub, "LARGE", limit)
        refused(
            lambda: hub.download(tmp_path / "out", REPO, COMMIT, FILES), "/proc/hub", "set HF_HOME", error=StorageError
        )


def test_a_large_file_of_another_content_or_without_a_login(client, server, tmp_path, monkeypatch):
    """Neither gets into the client's cache."""
    monkeypatch.setattr(hub, "LARGE", 1000)
    server.fail("big.safetensors", content=b"x" * len(BIG), times=1)
    refused(lambda: hub.download(tmp_path / "out", REPO, COMMIT, FILES), "unet/big.safetensors", digest(BIG), "removed")
    assert list((client / "blobs").iterdir()) == []
    server.fail("big.safetensors", status=401, times=1)
    refused(lambda: hub.download(tmp_path / "out", REPO, COMMIT, FILES), "wants a login (401)", "set HF_TOKEN")
    hub.download(tmp_path / "out", REPO, COMMIT, FILES)
    assert (tmp_path / "out" / "unet" / "big.safetensors").read_bytes() == BIG


def test_obtain_takes_repositories_and_addresses(client, server, tmp_path):
    hub.obtain(tmp_path / "a", {"repo": REPO, "revision": COMMIT, "files": ["unet/*"], "sha256": {}})
    assert left(tmp_path / "a") == ["SHA256SUMS", "download.json", "unet/big.safetensors", "unet/config.json"]
    url = f"{server.url}/x.bin"
    hub.obtain(tmp_path / "b", {"url": url, "name": "x.bin", "sha256": None})
    hub.obtain(tmp_path / "b", {"url": url, "name": "x.bin", "sha256": digest(BIG)})
    assert left(tmp_path / "b") == ["SHA256SUMS", "download.json", "x.bin"]
    told = {"sha256": digest(BIG), "size": len(BIG), "checked": "preset"}
    assert storage.read_json(tmp_path / "b" / "download.json") == {"url": url, "files": {"x.bin": told}}


def test_two_processes_of_the_real_client(server, tmp_path):
    """The environment as a job has it; each blob comes once, and offline is taken from the environment."""
    server.fail("big.safetensors", delay=0.5)
    environment = {**os.environ, "PYTHONPATH": "workflow", "HF_ENDPOINT": server.url}
    code = f"from consistency.data.fetch import hub; import sys; hub.download(sys.argv[1], '{REPO}', '{COMMIT}', {FILES}); print('torch' in sys.modules)"

    def start(name, **more):
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        return subprocess.Popen(
            command, env=environment | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    pair = [start("a"), start("b")]
    assert [process.communicate(timeout=60) for process in pair] == [("False\n", "")] * 2
    assert len([request for request in server.came("big.safetensors") if request.path.startswith("/cdn")]) == 1
    server.requests.clear()
    assert start("c", HF_HUB_OFFLINE="1").communicate(timeout=60) == ("False\n", "")
    assert server.requests == []
    for name in "abc":
        assert (tmp_path / name / "unet" / "big.safetensors").read_bytes() == BIG
