"""An S3 server as a process of its own: `python s3_server.py PORT`, with moto's S3 behind it.

It adds what moto leaves out and real servers have. Conditional writes are atomic; signatures by a key that it
does not know are refused; so are those whose time is a quarter of an hour off.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

KEY = "glassworks-test"
SKEW_SECONDS = 15 * 60
REFUSAL = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"


class Server:
    """moto's application, with a doorkeeper."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._one_at_a_time = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        if refusal := refused(environ):
            code, message = refusal
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [REFUSAL.format(code=code, message=message).encode()]
        with self._one_at_a_time:
            return list(self._moto(environ, start_response))


def refused(environ: dict[str, Any]) -> tuple[str, str] | None:
    """Why a request is turned away; None where it is not, or is none of S3's."""
    signature = re.search(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    if signature is None:
        return None
    if signature[1] != KEY:
        return "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."
    signed = datetime.strptime(environ["HTTP_X_AMZ_DATE"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if abs((datetime.now(UTC) - signed).total_seconds()) > SKEW_SECONDS:
        return (
            "RequestTimeTooSkewed",
            "The difference between the request time and the server's is too large.",
        )
    return None


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), Server(), threaded=True, request_handler=MotoRequestHandler)
