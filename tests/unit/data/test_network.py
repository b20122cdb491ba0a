"""What the user is told when a connection fails: the true cause, with the variable of the environment that is to blame."""

import errno

import certificates
import huggingface_hub
import pytest
from consistency.data.fetch import downloads, hub, network
from consistency.data.fetch.downloads import DownloadError, fetch
from consistency.errors import StorageError
from hubserver import COMMIT, HubServer

REPO = "owner/tiny"
VARIABLES = [*network.OF_REQUESTS, *network.OF_HUB, *(f"{s}_proxy" for s in ("http", "https", "all")), "no_proxy"]
NOWHERE = "127.0.0.1:9"  # the port of a service that nobody runs


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    """Empty caches, no variables of the network, quick retries; a client that reads the environment again."""
    from huggingface_hub import constants

    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in {"CONSISTENCY_CACHE": tmp_path / "cache", "HF_HUB_OFFLINE": "0", "HF_HOME": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(downloads, "BACKOFF", 0.01)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root" / REPO).mkdir(parents=True)
    (tmp_path / "root" / REPO / "model_index.json").write_text("{}")
    (tmp_path / "root" / "x.bin").write_bytes(b"x" * 100)
    return tmp_path / "root"


@pytest.fixture
def server(root, monkeypatch):
    with HubServer(root) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture(params=["valid", "expired"])
def secure(root, tmp_path, monkeypatch, request):
    """A server with TLS, and the file of its certificate."""
    certificate = tmp_path / "certificate.pem"
    certificate.write_text(getattr(certificates, request.param.upper()) + certificates.KEY)
    with HubServer(root, certificate=certificate) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.certificate = certificate
        server.kind = request.param
        yield server


def of_hub(server, tmp_path):
    hub.download(tmp_path / "out", REPO, COMMIT, ["model_index.json"])


def of_file(server, tmp_path):
    fetch(f"{server.url}/x.bin", "x.bin")


def refused(road, server, tmp_path):
    """The one line of a road's error."""
    with pytest.raises(DownloadError) as caught:
        road(server, tmp_path)
    line = str(caught.value)
    assert "\n" not in line
    assert "s3cret" not in line
    return line


@pytest.mark.parametrize("secure", ["valid"], indirect=True)
@pytest.mark.parametrize("how", ["missing", "garbage", "folder"])
@pytest.mark.parametrize(
    ("road", "variable"),
    [(of_hub, "SSL_CERT_FILE"), (of_file, "REQUESTS_CA_BUNDLE"), (of_file, "CURL_CA_BUNDLE")],
)
def test_a_file_of_certificates_that_cannot_be_read_is_named(secure, tmp_path, monkeypatch, road, variable, how):
    path = tmp_path / "ca.pem"
    if how == "garbage":
        path.write_text("garbage")
    elif how == "folder":
        path.mkdir()
    monkeypatch.setenv(variable, str(path))
    line = refused(road, secure, tmp_path)
    if how == "folder" and road is of_file:  # requests takes folders; there is nothing in this one
        assert f"not accepted: self-signed certificate (certificates: {variable}={path})" in line
    else:
        assert f": {variable}={path}: no certificates can be read there (" in line
        assert line.count(variable) == 1
    assert not secure.requests


def test_a_variable_of_the_other_client_is_no_matter(server, tmp_path, monkeypatch):
    for name in network.OF_REQUESTS:
        monkeypatch.setenv(name, "/nonexistent.pem")
    of_hub(server, tmp_path)
    of_file(server, tmp_path)  # plain http asks for no certificate


@pytest.mark.parametrize(("road", "variable"), [(of_hub, "SSL_CERT_FILE"), (of_file, "REQUESTS_CA_BUNDLE")])
def test_why_a_certificate_is_not_accepted(secure, tmp_path, monkeypatch, road, variable):
    """Unknown; known but expired; of another name; and one that is right."""
    if secure.kind == "valid":
        line = refused(road, secure, tmp_path)
        assert "the host's certificate is not accepted: self-signed certificate (" in line
        assert f"name them with {variable}" in line
    monkeypatch.setenv(variable, str(secure.certificate))
    huggingface_hub.close_session()
    if secure.kind == "expired":
        assert f"certificate has expired (certificates: {variable}={secure.certificate})" in refused(
            road, secure, tmp_path
        )
        return
    road(secure, tmp_path)
    secure.url = secure.url.replace("localhost", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", secure.url)
    (tmp_path / "cache/files/x.bin").unlink(missing_ok=True)
    secure.moved = "f" * 40
    assert "IP address mismatch" in refused(
        lambda server, folder: (
            hub.download(folder / "b", REPO, COMMIT, ["x*"]) if road is of_hub else road(server, folder)
        ),
        secure,
        tmp_path,
    )


@pytest.mark.parametrize("road", [of_hub, of_file])
def test_a_host_without_tls(server, tmp_path, monkeypatch, road):
    server.url = server.url.replace("http:", "https:")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    assert "the host does not speak TLS" in refused(road, server, tmp_path)


@pytest.mark.parametrize("road", [of_hub, of_file])
@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    ("proxy", "shown", "why"),
    [
        (f"http://me:s3cret@{NOWHERE}", f"http://{NOWHERE}", "does not answer"),
        (NOWHERE, NOWHERE, "does not answer"),
        (f"http://me:s3cret/@x@{NOWHERE}", f"http://{NOWHERE}", "special characters as %XX"),
        (f"me:s3cret@{NOWHERE}", NOWHERE, "a login stands before HOST as USER:PASSWORD@"),
        ("http://me:s3cret@no-such-host.invalid:80", "http://no-such-host.invalid:80", "does not answer"),
        ("ftp://me:s3cret@proxy:80", "ftp://proxy:80", "no proxy that can be used; http://HOST:PORT expected"),
        ("http://me:s3cret@proxy:port", "http://proxy:port", "no proxy that can be used; http://HOST:PORT expected"),
    ],
)
def test_a_proxy_is_named_without_its_password(server, tmp_path, monkeypatch, road, variable, proxy, shown, why):
    monkeypatch.setenv(variable, proxy)
    line = refused(road, server, tmp_path)
    assert f"{variable}={shown}" in line
    assert why in line
    assert f"{variable}={shown}" in network.unreachable(server.url, timeout=1)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    of_file(server, tmp_path)
    assert not network.unreachable(server.url)


@pytest.mark.parametrize("road", [of_hub, of_file])
def test_a_proxy_that_wants_a_login(server, root, tmp_path, monkeypatch, road):
    with HubServer(root) as proxy:  # it answers whatever is asked for
        for path in ("*", "x.bin"):
            proxy.fail(path, status=407)
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//me:s3cret@"))
        line = refused(road, server, tmp_path)
    assert "407" in line
    assert "wants a login" in line
    assert not server.requests


@pytest.mark.parametrize("endpoint", ["127.0.0.1:80", "htp://hub", "http:/hub", "//hub"])
def test_an_endpoint_that_is_no_address(server, tmp_path, monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    line = refused(of_hub, server, tmp_path)
    assert f"HF_ENDPOINT={endpoint}: http://HOST or https://HOST expected" in line


def test_a_full_disk_below_other_errors(server, tmp_path, monkeypatch):
    """As a library raises it that wraps what it meets."""

    def full(*_, **__):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("download failed") from error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(StorageError, match="disk full while writing"):
        hub._call("here", 1, full)


def test_without_a_home_the_variable_is_named(monkeypatch):
    monkeypatch.delenv("CONSISTENCY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "nowhere")
    with pytest.raises(DownloadError, match="there is no home .*: set CONSISTENCY_CACHE to a folder"):
        downloads.cache_folder()
