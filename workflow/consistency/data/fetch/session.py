"""The HTTP client of `downloads`: a server can neither lead it from https to http nor keep it waiting for ever."""

from __future__ import annotations

import threading
from urllib.parse import urlsplit

import requests

from .network import leads_down


class Session(requests.Session):
    """A session that refuses redirects from https to http."""

    def get_redirect_target(self, response: requests.Response) -> str | None:
        """Where a response leads, if anywhere.

        Raises:
            DownloadError: from https to http.
        """
        target = super().get_redirect_target(response)
        if target and response.url.startswith("https:") and urlsplit(target).scheme.lower() == "http":
            raise leads_down(target)
        return target

    def answer(self, url: str, headers: dict[str, str], seconds: float) -> requests.Response:
        """The response to a GET whose body is not read yet.

        Args:
            seconds: of silence, after which a connection is given up; its headers may take three times as long, however
                slowly they come.

        Raises:
            requests.RequestException: no connection, no answer in time, …
            DownloadError: a redirect that is refused.
        """
        result: list[requests.Response | Exception] = []

        def ask() -> None:
            try:
                options = {"stream": True, "timeout": (min(seconds, 10.0), seconds)}
                result.append(self.get(url, headers=headers, **options))
            except Exception as error:  # raised below
                result.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(3 * seconds)
        if not result:
            raise requests.Timeout("headers that do not end")
        if isinstance(result[0], Exception):
            raise result[0]
        return result[0]
