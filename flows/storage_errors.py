"""What S3-compatible storage answers when it does not do as it is told, in our words.

Unreachable is a RetryableError: no answer, or one that says to come back. Missing and Changed are answers to
a question, not mistakes: no such object, and an object that is not as the conditional write wants it.
"""

from __future__ import annotations

import os
import shlex
import sys
from http import HTTPStatus
from typing import Any

from flows.image_locks import CONSTRAINTS
from stages.runtime.errors import GlassworksError, RetryableError, UserError
from stages.runtime.fingerprint import REPOSITORY

REFUSED_CONDITION = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
NO_SUCH_OBJECT = {"NoSuchKey", "NoSuchUpload", "404"}
CREDENTIALS = {
    "AccessDenied",
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "401",
    "403",
}
REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException", "301"}
NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
}
WRONG_NAMES = {"NoRegionError", "ParamValidationError", "InvalidEndpointError"}
NETWORK_LAYERS = {"aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "http", "urllib3"}
COME_BACK = {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "TooManyRequests"}


class Changed(Exception):
    """A conditional write was refused: the object is not, or no longer, as it was seen."""


class Missing(Exception):
    """There is no such object."""


class Unreachable(RetryableError):
    """The storage does not answer, or says to come back later."""


class Unsupported(UserError):
    """The storage does not know what it was asked for."""


def explained(error: Exception, url: str) -> Exception:
    """The error in our words; what is none of the storage's stays as it is."""
    if isinstance(error, GlassworksError | Changed | Missing | InterruptedError) or _is_local(error):
        return error
    answer = error_answer(error)
    if answer is not None:
        return _of_code(answer, url)
    if type(error).__name__ in NO_CREDENTIALS:
        return _credentials(url, str(error))
    if type(error).__name__ in WRONG_NAMES or isinstance(error, ValueError | TypeError):
        return UserError(
            f"{url}: {error}", hint="is the bucket's name, AWS_ENDPOINT_URL or the region wrong?"
        )
    return _unreachable(url, _deepest(error)) if _is_of_the_network(error) else error


def error_answer(error: BaseException | None) -> dict[str, Any] | None:
    """The storage's answer that an error was made of, if there was an answer."""
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict) and "Error" in answer:
            return answer
        error = error.__cause__
    return None


def _of_code(answer: dict[str, Any], url: str) -> Exception:
    code = str(answer["Error"].get("Code", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = f"{code}: {answer['Error'].get('Message', '')}".rstrip(": ")
    if code in REFUSED_CONDITION:
        return Changed(said)
    if code in NO_SUCH_OBJECT:
        return Missing(said)
    if code == "NotImplemented" or status == HTTPStatus.NOT_IMPLEMENTED:
        return Unsupported(f"{url} cannot do this: {said}", hint="glassworks doctor tries what a build needs")
    if status >= 500 or code in COME_BACK:
        return _unreachable(url, said)
    return _users_mistake(code, said, url)


def _users_mistake(code: str, said: str, url: str) -> UserError:
    if code in CREDENTIALS:
        return _credentials(url, said)
    if code == "NoSuchBucket":
        remedy = f"make it (aws s3 mb s3://{url.split('/')[2]}), or mend --store and AWS_ENDPOINT_URL"
        return UserError(f"{url}: there is no such bucket", hint=remedy)
    if code in REGION:
        return UserError(f"{url}: {said}", hint="export AWS_DEFAULT_REGION=... of the bucket")
    return UserError(f"{url} refused: {said}", hint="glassworks doctor tries what a build needs")


def _credentials(url: str, said: str) -> UserError:
    return UserError(
        f"{url}: the storage does not let us in: {said}",
        hint="export AWS_ACCESS_KEY_ID=... and AWS_SECRET_ACCESS_KEY=... that may read and write there",
    )


def _unreachable(url: str, said: str) -> Unreachable:
    return Unreachable(
        f"{url} cannot be reached at {endpoint() or 'AWS'}: {said}",
        hint="when it is back, the same command goes on from here: what was made and sent is kept",
    )


def endpoint() -> str:
    """Where requests go, as far as the environment says; empty for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _is_local(error: Exception) -> bool:
    """Whether our own disk said it: a full one, say, which no later attempt at the storage mends."""
    return isinstance(error, OSError) and error.filename is not None


def _is_of_the_network(error: Exception) -> bool:
    """A line that was cut shows as an error of the system or of any layer between it and us."""
    layer = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError | EOFError) or layer in NETWORK_LAYERS


def _deepest(error: BaseException) -> str:
    """The reason behind the reason: `connection refused` tells more than `could not connect`."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__


def missing_packages() -> UserError:
    """The extra `s3` is not installed."""
    pip = [sys.executable, "-m", "pip", "install", "--constraint", str(CONSTRAINTS)]
    return UserError(
        "a store on s3:// needs the package s3fs", hint=shlex.join([*pip, "--editable", f"{REPOSITORY}[s3]"])
    )
