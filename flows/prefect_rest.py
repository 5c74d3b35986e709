"""The few questions that we ask a Prefect server without importing Prefect, which takes two seconds."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from stages.runtime.errors import RetryableError

TIMEOUT_SECONDS = 10.0


class PrefectRest:
    """A Prefect server's API. Every method raises RetryableError if it does not answer, or refuses."""

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

    def exists(self, path: str) -> bool:
        """Whether there is something at `path`."""
        try:
            self.get(path)
        except NotThere:
            return False
        return True

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.api_url}{path}", data, headers, method=method)
        # Asked directly, past any proxy for the outside world.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=TIMEOUT_SECONDS) as reply:
                return json.loads(reply.read() or b"null")
        except urllib.error.HTTPError as error:
            kind = NotThere if error.code == 404 else RetryableError
            said = error.read().decode("utf-8", "replace")[:300]
            raise kind(f"{method} {request.full_url} was refused ({error.code}): {said}") from None
        except (OSError, ValueError) as error:
            message = f"the Prefect server at {self.api_url} does not answer: {error}"
            raise RetryableError(
                message, hint="glassworks up; glassworks doctor says what is wrong"
            ) from None


class NotThere(RetryableError):
    """The server has nothing of that name."""
