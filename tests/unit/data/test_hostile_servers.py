"""Servers that mean harm: each is one line, in bounded time and space, and learns nothing."""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from certificates import KEY, VALID
from consistency import addresses, config
from consistency.data.fetch import downloads
from consistency.data.fetch.downloads import DownloadError, fetch, receive
from consistency.data.fetch.session import Session
from consistency.errors import ConfigError
from consistency.files import storage
from helpers import Project
from hubserver import HubServer

OK = b"HTTP/1.1 200 OK\r\n"


class Server:
    """Answers each connection by `respond(send, path)`, and keeps the requests' heads."""

    def __init__(self, respond):
        self.respond, self.heads, self.closing = respond, [], threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def serve(self):
        with suppress(OSError):
            while True:
                threading.Thread(target=self.answer, args=self.listener.accept()[:1], daemon=True).start()

    def answer(self, connection):
        with connection, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096) or b"\r\n\r\n"
            if not head.strip():
                return  # only to see whether somebody is here
            self.heads.append(head.decode())
            self.respond(connection.sendall, head.split()[1].decode())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "CONSISTENCY_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CONSISTENCY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONSISTENCY_TIMEOUT", "1")
    monkeypatch.setattr(downloads, "BACKOFF", 0.01)
    return tmp_path / "cache"


def refused(call, *words, seconds=20):
    """The one line of an error that comes within so many seconds."""
    begin = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        call()
    line, passed = str(caught.value), time.monotonic() - begin
    assert passed < seconds, f"{passed:.1f} s: {line}"
    assert "\n" not in line
    for word in words:
        assert word in line, line
    return line


def kept(cache):
    return sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())


@pytest.mark.parametrize("length", ["abc", "-5", "5, 6", "0x10", "1e9", "+5", "٥", "9" * 30, "5.0"])
def test_a_length_that_is_no_number(length, cache):
    with Server(lambda send, _: send(OK + f"Content-Length: {length}\r\n\r\nhello".encode())) as server:
        line = refused(lambda: fetch(f"{server.url}/x", "x"))
    assert "announces" in line or "headers" in line or "truncated" in line, line
    assert kept(cache) < 1000


def test_more_than_is_announced_is_not_taken(cache):
    with Server(lambda send, _: send(OK + b"Content-Length: 5\r\n\r\nhello world")) as server:
        assert fetch(f"{server.url}/x", "x").read_bytes() == b"hello"


def test_a_body_without_end(cache, monkeypatch):
    monkeypatch.setattr(downloads, "UNANNOUNCED", 5_000_000)

    def endless(send, path):
        send(OK + (b"Transfer-Encoding: chunked\r\n\r\n" if "chunked" in path else b"\r\n"))
        while True:
            send((b"100000\r\n" + bytes(1 << 20) + b"\r\n") if "chunked" in path else bytes(1 << 20))

    with Server(endless) as server:
        for path in ("plain", "chunked"):
            line = refused(lambda path=path: fetch(f"{server.url}/{path}", path), "more than 5000000 bytes")
            assert "state it as gigabytes beside the address" in line
            refused(lambda path=path: fetch(f"{server.url}/{path}", path, megabytes=2), "more than 3248576 bytes came")
        assert kept(cache) < 1000


def test_more_than_the_configuration_says(cache):
    with Server(lambda send, _: send(OK + b"Content-Length: 5000000\r\n\r\n" + bytes(5_000_000))) as server:
        refused(
            lambda: fetch(f"{server.url}/x", "x", megabytes=2),
            "announces 5000000 bytes; the configured size allows at most 3248576",
        )
        assert kept(cache) < 1000
        assert fetch(f"{server.url}/x", "x", megabytes=5).stat().st_size == 5_000_000


def test_a_file_that_the_disk_cannot_hold_is_not_begun(cache):
    with Server(lambda send, _: send(OK + b"Content-Length: 900000000000000000\r\n\r\nhello")) as server:
        with pytest.raises(storage.StorageError, match="x.part: disk full: 900000000000.0 MB are to come") as caught:
            fetch(f"{server.url}/x", "x")
        assert "\n" not in str(caught.value)
        assert kept(cache) < 1000


def test_drops_that_never_stop(cache):
    def drip(send, path):
        send(OK + b'Content-Length: 1000000\r\nETag: "a"\r\n\r\n' if path == "/body" else OK)
        while True:
            send(b"x" if path == "/body" else b"X-More: y\r\n")
            time.sleep(0.2)

    with Server(drip) as server:
        refused(lambda: fetch(f"{server.url}/body", "body"), "less than 1000 bytes a second came for 1 s", seconds=5)
        refused(lambda: fetch(f"{server.url}/headers", "headers"), "no answer for 1 s", seconds=18)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/", "data:,x"])
def test_a_redirect_to_something_else_than_http(target, cache):
    head = f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
    with Server(lambda send, _: send(head)) as server:
        refused(lambda: fetch(f"{server.url}/x", "x"), "no address that can be used")


def test_a_redirect_without_end(cache):
    head = b"HTTP/1.1 302 Found\r\nLocation: /x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    with Server(lambda send, _: send(head)) as server:
        refused(lambda: fetch(f"{server.url}/x", "x"), "redirects in circles")


def test_a_token_goes_to_no_other_host_or_port(cache, tmp_path):
    with Server(lambda send, _: send(OK + b"Content-Length: 5\r\n\r\nhello")) as other:
        for host in ("localhost", "127.0.0.1"):
            target = f"http://{host}:{other.port}/x"
            head = f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
            with Server(lambda send, _, head=head: send(head)) as server:
                part = tmp_path / "cache" / f"{host}.part"
                receive(f"{server.url}/x", "x", part, "", {"Authorization": "Bearer hf_secret"})
                assert "hf_secret" in server.heads[0]
        assert len(other.heads) == 2
        assert not any("hf_secret" in head for head in other.heads), other.heads


def test_https_does_not_lead_to_http(cache, tmp_path, monkeypatch):
    """The real thing, over TLS; in the other direction it is followed."""
    certificate = tmp_path / "certificate.pem"
    certificate.write_text(KEY + VALID)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "x").write_bytes(b"hello")
    with (
        HubServer(tmp_path / "root") as plain,
        HubServer(tmp_path / "root", certificate=certificate) as secure,
    ):
        secure.fail("x", status=302, headers={"Location": f"{plain.url}/x?signature=s3cret"}, times=1)
        line = refused(lambda: fetch(f"{secure.url}/x", "x"), "the server leads from https to http")
        assert "s3cret" not in line
        assert plain.requests == []
        plain.fail("x", status=302, headers={"Location": f"{secure.url}/x"}, times=1)
        assert fetch(f"{plain.url}/x", "y").read_bytes() == b"hello"


def test_a_session_refuses_what_leads_down():
    session = Session()
    response = SimpleNamespace(is_redirect=True, headers={"location": "HTTP://host/x"}, url="https://host/x")
    with pytest.raises(DownloadError, match="from https to http"):
        session.get_redirect_target(response)
    response.headers = {"location": "//host/y"}
    assert session.get_redirect_target(response) == "//host/y"


# What is shown of addresses

SECRET = "S3CRET"
ADDRESSES = [
    f"https://user:{SECRET}@h/x", f"https://{SECRET}@h/x", f"https://user:p@{SECRET}@h/x", f"https://u:pa/{SECRET}@h/x",
    f"https://h/x?sig={SECRET}&se=1", f"https://h/x?{SECRET}", f"https://h/x#access_token={SECRET}",
    f"https://h/x?a=1;token={SECRET}", f"https://h?{SECRET}", f"https://h#{SECRET}", f"HTTPS://h/x?X-Amz-Signature={SECRET}",
    f"https://h/x?a=(1)&b='{SECRET}'", f"https://h/x?a=\"{SECRET}\"", f"s3://key:{SECRET}@bucket/x", f"https://h/x??{SECRET}",
    f"https://[::1]:80/x?{SECRET}", f"https://u:{SECRET}@[::1]:80/x", f"https://h/x?…{SECRET}"[:12] + f"?{SECRET}",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_only_scheme_host_and_path_are_shown(address):
    for text in (address, f"cannot get ({address}), or so", f"{address} and {address}", repr({"url": address})):
        shown = addresses.public(text)
        assert SECRET not in shown, shown
        assert addresses.public(shown) == shown, "cut twice"
        assert "://" in shown
        assert SECRET not in str(DownloadError(text))


def test_harmless_text_is_left_as_it_is():
    for text in ("https://h/a/b.pt; put it there", "see (https://h/a), or http://[::1]:8080/@s/p", "a ? b # c", ""):
        assert addresses.public(text) == text


def test_an_address_as_a_param_and_back(monkeypatch):
    one, other = "https://h/x?id=1", "https://h/x?id=2"
    assert addresses.shown(one) != addresses.shown(other), "another query is another param"
    assert addresses.shown("https://h/x") == "https://h/x"
    assert addresses.shown(addresses.shown(one)) == addresses.shown(one)
    for name, value in addresses.hidden(one).items():
        monkeypatch.setenv(name, value)
    assert addresses.whole(addresses.shown(one)) == one
    assert addresses.whole(addresses.shown(other)) == addresses.shown(other)
    assert addresses.hidden("https://h/x") == {}
    nested = {"a": [{"url": one}, ("b", one)], "c": 1}
    assert "id=1" not in json.dumps(addresses.hide(nested))


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (f"https://user:{SECRET}@h/x", "without login"),
        (f"https://{SECRET}@h/x", "without login"),
        (f"https://user:pa/{SECRET}@h/x", "without login"),
        ("https://h/x y", "printable ASCII"),
        ("https://h/x\n", "printable ASCII"),
        (f"https://h/x#{SECRET}", "without fragment"),
        ("https:///x", "with a host"),
        ("file:///etc/passwd", "http:// or https://"),
    ],
)
def test_addresses_that_a_preset_may_not_hold(url, why):
    source = {"kind": "dinov2", "weights": {"url": url, "name": "x"}}
    data = {"kind": "captions", "name": "d", "download": {"url": url, "name": "x.zip"}, "vae": "v"}
    with pytest.raises(ConfigError, match=why) as caught:
        config.load_experiment("sdxl", {"data": data})
    assert SECRET not in str(caught.value), caught.value
    with pytest.raises(ConfigError) as caught:  # as a value of another kind
        config.load_experiment("digits", {"extractors": [source], "title": url * 50})
    assert SECRET not in str(caught.value), caught.value


def test_a_hidden_query_reaches_the_server_and_no_file(tmp_path, cache, monkeypatch):
    """Through snakemake: the job asks for the whole address, and neither results, notes, logs nor output hold its query."""
    project = Project(tmp_path / "project")
    with Server(lambda send, _: send(OK + b"Content-Length: 5\r\n\r\nhello")) as server:
        url = f"{server.url}/weights.pt?token={SECRET}"
        weights = {"kind": "clip", "weights": {"repo": "a/b", "revision": "0" * 40, "files": ["*"]}}
        aesthetic = {"aesthetic": {"url": url, "name": "weights.pt"}}
        data = {"kind": "captions", "name": "d", "source": str(tmp_path), "vae": str(tmp_path)}
        changes = {"extractors": [{"kind": "efficientnet-lite0"}, weights | aesthetic], "data": data}
        (project.folder / "config.yaml").write_text(
            json.dumps({"experiments": ["sdxl"], "overrides": {"sdxl": changes}})
        )
        target = "results/sdxl/downloads/aesthetic"
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        done = project.snakemake(target)
        again = project.snakemake(target)
        summary = project.snakemake(target, "--detailed-summary")
        changed = json.loads((project.folder / "config.yaml").read_text().replace(SECRET, "0ther"))
        (project.folder / "config.yaml").write_text(json.dumps(changed))
        (cache / "files" / "weights.pt").unlink()
        project.snakemake(target)
    paths = [head.split()[1] for head in server.heads]
    assert paths == [f"/weights.pt?token={SECRET}", "/weights.pt?token=0ther"], "another query downloads again"
    for text in (done, again, summary):
        assert SECRET not in text.stdout + text.stderr
    holders = [
        str(path)
        for folder in (project.folder, cache)
        for path in folder.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    assert holders == []
    assert "weights.pt?query-" in "".join(
        path.read_text() for path in (project.folder / ".snakemake" / "metadata").iterdir() if path.is_file()
    )
    assert os.path.exists(project.folder / target / "weights.pt")
