"""Addresses: what of them may be shown, and how a job gets what may not.

A login holds a password and a query may hold a signature, so neither reaches a log, a message, a record or Snakemake's
notes. Logins are refused in the configuration. In a job's params an address has a digest in the place of its query;
the process that reads the configuration puts the whole address into its environment, which its jobs inherit.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any
from urllib.parse import urlsplit

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]{0,20}://)(\S*)", re.IGNORECASE)  # bounded, or a long text takes hours
_SHOWN = re.compile(r"\?query-[0-9a-f]{16}$")
NETRC = "a line `machine HOST login USER password PASSWORD` in ~/.netrc gives the login"


def public(text: str) -> str:
    """`text` with every address cut to scheme, host and path, and without the value of HF_TOKEN."""
    text = _ADDRESS.sub(_without_secrets, text)
    token = os.environ.get("HF_TOKEN", "").strip()
    return text.replace(token, "***") if token else text


def _without_secrets(match: re.Match) -> str:
    scheme, rest = match.groups()
    rest, sign, query = re.sub("[?#]", "?", rest, count=1).partition("?")
    host, slash, path = rest.partition("/")
    if re.search(r":(?!\d*$)", host) and not host.startswith("[") and "@" in path:  # a password with a slash
        host, slash, path = rest.rpartition("@")[2].partition("/")
    path = re.sub(r"://[^/\s]*@", "://", path)  # an address within the address
    after = query[1:] if query.startswith("…") else ""  # the text was cut before
    return scheme + host.rpartition("@")[2] + slash + path + ("?…" + after if sign else "")


def parts(address: str) -> tuple[str, str, str]:
    """Scheme, login and host with port of an address; "" for what it has not. A login may hold any character."""
    scheme, between, rest = address.partition("://")
    login, _, host = (rest if between else address).rpartition("@")
    return (scheme if between else ""), login, host


def without_login(address: str) -> str:
    """A proxy's or a hub's address as it may be shown."""
    scheme, _, host = parts(address)
    return f"{scheme}://{host}" if scheme else host


def check(url: str) -> str:
    """An address of the configuration.

    Raises:
        ValueError: it is no address of http or https, has a login, or a fragment.
    """
    if not re.fullmatch(r"https?://[!-~]+", url):
        raise ValueError("allowed: http:// or https:// and printable ASCII; other characters as %XX")
    pieces = urlsplit(url)
    if "@" in pieces.netloc or re.search(r":(?!\d*$)", re.sub(r"^\[.*\]", "", pieces.netloc)):
        raise ValueError(f"allowed: an address without login; {NETRC}")
    if not pieces.hostname:
        raise ValueError("allowed: an address with a host")
    if "#" in url:
        raise ValueError("allowed: an address without fragment (#…), which no server is told")
    return url


def hidden(url: str) -> dict[str, str]:
    """The variable of the environment that holds an address whose query is hidden; empty for one without."""
    return {_variable(shown(url)): url} if "?" in url and not _SHOWN.search(url) else {}


def shown(url: str) -> str:
    """The address as params may hold it: with a digest in the place of the query, so that another one is seen."""
    start, sign, _ = url.partition("?")
    if not sign or _SHOWN.search(url):
        return url
    return f"{start}?query-{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def hide(value: Any) -> Any:
    """A configuration, as plain data, whose addresses are as `shown`."""
    if isinstance(value, dict):
        return {key: hide(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [hide(inner) for inner in value]
    return shown(value) if isinstance(value, str) and re.match("https?://", value) else value


def whole(url: str) -> str:
    """The address that `shown` was called with, as far as the environment has it."""
    return os.environ.get(_variable(url), url) if _SHOWN.search(url) else url


def _variable(address: str) -> str:
    return f"CONSISTENCY_ADDRESS_{address[-16:]}"
