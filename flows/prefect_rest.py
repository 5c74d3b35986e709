"""The few questions that we ask a Prefect server without importing Prefect, which takes two seconds."""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any

from stages.runtime.errors import RetryableError

TIMEOUT_SECONDS = 10.0
#: Pauses before asking again what a server did not do because its database was locked.
PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
BUSY = {429, 503}


class PrefectRest:
    """A Prefect server's API. Every method raises RetryableError if it does not answer, or refuses.

    A server that was too busy for a request (429, 503) did nothing of it and is asked again, as Prefect's own
    client does.
    """

    def __init__(self, api_url: str) -> None:
        self.api_url = api_url.rstrip("/")

    def get(self, path: str) -> Any:
        """What stands at `path`."""
        return self._ask("GET", path, None)

    def post(self, path: str, **body: Any) -> Any:
        """What the server says to `body`."""
        return self._ask("POST", path, body)

    def version(self) -> str:
        """The server's own version of Prefect."""
        return str(self.get("/admin/version"))

    def seconds_ahead(self) -> float:
        """By how much the server's clock is ahead of ours, to about a second; negative where it is behind."""
        headers = self._open(urllib.request.Request(f"{self.api_url}/health"))[0]
        try:
            theirs = parsedate_to_datetime(headers["Date"])
        except (TypeError, ValueError):
            return 0.0
        return (theirs - datetime.now(UTC)).total_seconds()

    def exists(self, path: str) -> bool:
        """Whether there is something at `path`."""
        try:
            self.get(path)
        except NotThere:
            return False
        return True

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **_authorization()}
        request = urllib.request.Request(f"{self.api_url}{path}", data, headers, method=method)
        try:
            return json.loads(self._open(request)[1] or b"null")
        except ValueError as error:
            raise self._no_answer(error) from None

    def _open(self, request: urllib.request.Request) -> tuple[Message, bytes]:
        """Headers and body. Asked directly, past any proxy for the outside world."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for pause in (*PAUSES_SECONDS, None):
            try:
                with opener.open(request, timeout=TIMEOUT_SECONDS) as reply:
                    return reply.headers, reply.read()
            except urllib.error.HTTPError as error:
                if error.code not in BUSY or pause is None:
                    raise _refusal(request, error) from None
            except OSError as error:
                raise self._no_answer(error) from None
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _no_answer(self, error: Exception) -> RetryableError:
        return RetryableError(
            f"the Prefect server at {self.api_url} does not answer: {error}",
            hint="glassworks up; glassworks doctor says what is wrong",
        )


def _refusal(request: urllib.request.Request, error: urllib.error.HTTPError) -> RetryableError:
    kind = NotThere if error.code == 404 else RetryableError
    said = error.read().decode("utf-8", "replace")[:300]
    return kind(f"{request.get_method()} {request.full_url} was refused ({error.code}): {said}")


def _authorization() -> dict[str, str]:
    """What a server with a password wants: Prefect's own variable, `user:password`."""
    word = os.environ.get("PREFECT_API_AUTH_STRING")
    return {"Authorization": f"Basic {base64.b64encode(word.encode()).decode()}"} if word else {}


class NotThere(RetryableError):
    """The server has nothing of that name."""
