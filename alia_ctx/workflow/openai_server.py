"""Requests to a server of OpenAI's interface: tried again where it is busy, with what a
person should hear where it does not answer.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from typing import Any
from urllib.parse import urlsplit

from alia_ctx.errors import ConfigError, DataError, Problem

_TIMEOUT_SECONDS = 600.0
_PAUSES_SECONDS = (1.0, 4.0, 16.0)


class FailureError(DataError):
    """A question that the server fails with; `fault` says how, of the question alone."""

    def __init__(self, message: str, fault: str) -> None:
        super().__init__(message)
        self.fault = fault


class OpenAiServer:
    """A server at an address; a key for it is taken from `OPENAI_API_KEY`.

    Args:
        url: the address that `/chat/completions` follows. ConfigError where it is none,
            or the key none that HTTP can send.
    """

    def __init__(self, url: str) -> None:
        self._scheme, self._host, self._port, self._path = _parts(url)
        self.url = url.rstrip("/")  # one server, however it is written
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not _is_plain(self._key):
            rule = "has characters that no header may have"
            remedy = "set the server's key, or none"
            raise ConfigError("", [Problem("OPENAI_API_KEY", "...", rule, remedy)])

    def elsewhere(self, status: int) -> str:
        """What to do where nothing is at the address, if it lacks what most have."""
        if status != 404 or self._path.endswith("/v1"):
            return ""
        return f"most servers answer at {self.url}/v1; name that"

    def request(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        """(status, body); tried again where the server is busy or the line breaks."""
        kinds = {
            "http": http.client.HTTPConnection,
            "https": http.client.HTTPSConnection,
        }
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        for pause in (*_PAUSES_SECONDS, None):
            try:
                connection = kinds[self._scheme](
                    self._host, self._port, timeout=_TIMEOUT_SECONDS
                )
                try:
                    address = f"{self._path}{path}"
                    connection.request(method, address, data, headers)
                    response = connection.getresponse()
                    answer = response.status, response.read()
                finally:
                    connection.close()
            # A server goes on with what is given up: asked again it would do it twice.
            except (ConnectionRefusedError, TimeoutError) as error:
                raise self._silent(error) from error
            except (OSError, http.client.HTTPException, ValueError) as error:
                if pause is None:
                    raise self._silent(error) from error
            else:
                if answer[0] in (401, 403):
                    rule = f"is refused by {self.url} (status {answer[0]})"
                    value = "..." if self._key else None
                    remedy = "set the key of this server"
                    problem = Problem("OPENAI_API_KEY", value, rule, remedy)
                    raise ConfigError("", [problem])
                if pause is None or not (answer[0] == 429 or answer[0] >= 500):
                    return answer
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _silent(self, error: Exception) -> DataError:
        told = f"does not answer ({error or type(error).__name__})"
        message = (
            f"{self.url}: {told}; start the server, or correct the address; answers "
            "that are there are kept"
        )
        if isinstance(error, ConnectionRefusedError):  # there is none
            return DataError(message)
        return FailureError(message, f"the server {told}")


def _parts(url: str) -> tuple[str, str, int | None, str]:
    """(scheme, host, port, path) of an address; ConfigError where it is none."""
    remedy = "as in http://HOST:PORT/v1"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:  # a bracket, or a port that is none
        raise ConfigError(
            "", [Problem("--endpoint", url, str(error), remedy)]
        ) from error
    rule = None
    if parts.scheme not in ("http", "https") or not host:
        rule = "is no http or https address"
    elif not _is_plain(url):
        rule = "has characters that no address may have"
    elif parts.username is not None or parts.password is not None:
        url = url.replace(parts.netloc, f"...@{parts.netloc.rpartition('@')[2]}")
        rule, remedy = "names a user", "leave it out; a key is that of OPENAI_API_KEY"
    elif parts.query or parts.fragment:
        rule = "has more than a path"
    if rule is not None or host is None:
        raise ConfigError("", [Problem("--endpoint", url, rule or "", remedy)])
    return parts.scheme, host, port, parts.path.rstrip("/")


def _is_plain(text: str) -> bool:
    """Whether HTTP can send a text as it is."""
    return all("!" <= letter <= "~" for letter in text)
