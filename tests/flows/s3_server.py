"""An S3 server as a process of its own: `python s3_server.py PORT`, with moto's S3 behind it.

It adds what moto leaves out and real servers have. Conditional writes are atomic; signatures by a key that it
does not know are refused; so are those whose time is a quarter of an hour off. A part of an upload that has
ended is NoSuchUpload, where moto fails with a KeyError.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from moto.s3.exceptions import NoSuchUpload
from moto.s3.models import S3Backend
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


def of_known_uploads(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of moto's about an upload, with the answer of S3 where there is no such upload."""

    def checked(backend: S3Backend, bucket_name: str, multipart_id: str, *rest: Any, **more: Any) -> Any:
        if multipart_id not in backend.get_bucket(bucket_name).multiparts:
            raise NoSuchUpload(upload_id=multipart_id)
        return method(backend, bucket_name, multipart_id, *rest, **more)

    return checked


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
    for name in ("upload_part", "complete_multipart_upload"):
        setattr(S3Backend, name, of_known_uploads(getattr(S3Backend, name)))
    run_simple("127.0.0.1", int(sys.argv[1]), Server(), threaded=True, request_handler=MotoRequestHandler)
