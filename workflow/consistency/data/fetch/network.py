"""Why a connection fails, in words: what the environment says of proxies and certificates, and what went wrong then."""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from urllib.parse import urlsplit

from ...addresses import parts, public, without_login
from ...errors import ConsistencyError

OFFLINE = "HF_HUB_OFFLINE or CONSISTENCY_OFFLINE"
# The variables that name certificates, of each client; the first that is set counts.
OF_REQUESTS = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
OF_HUB = ("SSL_CERT_FILE", "SSL_CERT_DIR")
FULL = (errno.ENOSPC, errno.EDQUOT)
_REASONS = {  # what the names of the exception and its causes hold; the first counts
    "OfflineMode": f"offline was set when the client was imported ({OFFLINE})",
    "InvalidHeader": "the answer's headers are not those of HTTP",
    "Invalid|Schema|UnsupportedProtocol": "no address that can be used, http:// or https:// expected",
    "NameResolution|gaierror": "no network, or no such host",
    "SSL": "the host does not speak TLS as it is expected of https://",
    "ConnectTimeout|NewConnection|ConnectError": "no network, or the host does not answer",
    "Timeout": "no answer in time",
    "Redirects": "the server redirects in circles",
    "FileMetadata|JSON": "the answer is no hub's (a login page of the network, or a wrong HF_ENDPOINT?)",
    "IncompleteRead": "truncated, the connection was cut",
    "Protocol|Connection|ReadError": "the connection was cut",
}
_UNREACHED = "ProxyError|NameResolution|gaierror|ConnectTimeout|NewConnection|ConnectError|ConnectionRefused"


class DownloadError(ConsistencyError):
    """A file that cannot be had from the network, or is not the one expected."""


def leads_down(target: str) -> DownloadError:
    """The error for a redirect from https to http, which nobody follows: who listens there may send anything."""
    return DownloadError(f"the server leads from https to http, to {target}; nothing was asked for there")


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


def _proxies() -> dict[str, tuple[str, str]]:
    """Scheme → the variable of the environment that names its proxy (small letters before capitals), and the proxy."""
    proxies = {}
    for scheme in ("http", "https", "all"):
        names = [f"{scheme}_proxy", *(n for n in os.environ if n.lower() == f"{scheme}_proxy")]
        name = next((name for name in names if name in os.environ), "")
        if name and os.environ[name]:
            proxies[scheme] = name, os.environ[name]
    return proxies


def proxy_of(url: str) -> str:
    """VARIABLE=ADDRESS of the proxy that the environment names for an address, without its password; "" for none."""
    from requests.utils import should_bypass_proxies

    proxies = _proxies()
    name, proxy = proxies.get(urlsplit(url).scheme) or proxies.get("all") or ("", "")
    return f"{name}={without_login(proxy)}" if name and not should_bypass_proxies(url, no_proxy=None) else ""


def check_environment(url: str, certificates: tuple[str, ...]) -> None:
    """Whether a client can use what the environment says of proxies and certificates.

    Args:
        url: what is going to be asked for.
        certificates: `OF_REQUESTS`, or `OF_HUB`, whose client uses all of it whatever the address.

    Raises:
        DownloadError: names the variable.
    """
    if certificates == OF_HUB and not re.match("https?://[^/]", url):
        raise DownloadError(
            f"HF_ENDPOINT={without_login(os.environ.get('HF_ENDPOINT', ''))}: http://HOST or https://HOST expected"
        )
    used, (module, package) = proxy_of(url), ("socksio", "socksio") if certificates == OF_HUB else ("socks", "PySocks")
    for name, proxy in _proxies().values():
        shown = f"{name}={without_login(proxy)}"
        scheme, login, host = parts(proxy)
        if certificates == OF_REQUESTS and shown != used:
            continue
        if scheme.lower() in ("socks5", "socks5h") and not find_spec(module):
            raise DownloadError(f"{shown}: the package {package} is needed for it and not installed")
        usable = re.fullmatch(r"(\[[^]/\s]+\]|[^:/\s]+)(:\d+)?/?", host) and not re.search(r"[/@?#\s]", login)
        supported = scheme.lower() in ("http", "https", "socks5", "socks5h") or not (scheme or login)
        if not (supported and usable):
            line = "http://HOST:PORT expected; a login stands before HOST as USER:PASSWORD@, special characters as %XX"
            raise DownloadError(f"{shown}: no proxy that can be used; {line}")
    variable = next((name for name in certificates if os.environ.get(name)), "SSL_CERT_DIR")
    # Without certificates of a folder, or of one that is not there, none is trusted; the connection's error says so.
    if variable != "SSL_CERT_DIR" and (certificates == OF_HUB or url.startswith("https:")):
        path = os.environ[variable]
        try:
            folder = certificates == OF_REQUESTS and os.path.isdir(path)
            ssl.create_default_context(capath=path) if folder else ssl.create_default_context(cafile=path)
        except OSError as error:
            why = getattr(error, "reason", None) or error.strerror
            raise DownloadError(
                f"{variable}={path}: no certificates can be read there ({why}); correct or unset it"
            ) from None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def causes(error: BaseException | None) -> str:
    """The names of an exception's class and of its causes' classes, with spaces between."""
    return " ".join(type(cause).__name__ for cause in chain(error))


def full_disk(error: BaseException) -> OSError | None:
    """What says, among an exception's causes, that the disk is full."""
    return next((cause for cause in chain(error) if isinstance(cause, OSError) and cause.errno in FULL), None)


def reason(error: BaseException, url: str, certificates: tuple[str, ...]) -> str:
    """Why a connection to `url` failed, in words; `certificates` as for `check_environment`."""
    names, proxy = causes(error), proxy_of(url)
    if wrong := next((cause for cause in chain(error) if isinstance(cause, ssl.SSLCertVerificationError)), None):
        name = next((name for name in certificates if os.environ.get(name)), "")
        own = f"where your network has its own, name them with {certificates[0]}"
        used = f"{name}={os.environ[name]}" if name else own
        return f"the host's certificate is not accepted: {wrong.verify_message} (certificates: {used})"
    if proxy and re.search(_UNREACHED, names) and "SSL" not in names:
        texts = "\n".join(f"{type(cause).__name__}: {cause}" for cause in chain(error))
        answer = re.search(r"(?:Tunnel connection failed: |ProxyError: |^)([45]\d\d)\b", texts)
        does = f"answers {answer[1]}" if answer else "does not answer"
        return f"the proxy {proxy} {does}" + (", it wants a login" if answer and answer[1] == "407" else "")
    other = f"{type(error).__name__}: {public(' '.join(str(error).split()))}"
    text = next((text for sign, text in _REASONS.items() if re.search(sign, names)), other)
    return text.replace("in time", f"for {timeout():g} s (CONSISTENCY_TIMEOUT)")


def unreachable(url: str, certificates: tuple[str, ...] = OF_REQUESTS, timeout: float = 3.0) -> str:
    """Why the address's host, or the proxy that the environment names for it, takes no connection; "" where it does."""
    try:
        check_environment(url, certificates)
    except DownloadError as error:
        return str(error)
    proxy = proxy_of(url)
    target = proxy.partition("=")[2] or url
    parts = urlsplit(target if "://" in target else f"http://{target}")
    answered = threading.Event()

    def connect() -> None:
        try:
            port = parts.port or {"https": 443, "socks5": 1080, "socks5h": 1080}.get(parts.scheme, 80)
            with socket.create_connection((parts.hostname, port), timeout):
                answered.set()
        except (OSError, ValueError):
            pass

    attempt = threading.Thread(target=connect, daemon=True)  # looking up a name knows no timeout
    attempt.start()
    attempt.join(timeout)
    return "" if answered.is_set() else f"the proxy {proxy} does not answer" if proxy else "no network"
