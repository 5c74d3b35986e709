"""One bucket of S3-compatible storage, in our words: bytes under keys, and writes that are refused if it
changed.

The client is s3fs (fsspec), which reads the usual variables: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_CA_BUNDLE and so on. Everything that two hosts could do at once is a
conditional write: S3 has them since 2024, and so have MinIO, Ceph, R2 and others. `glassworks doctor` tries
it.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flows import signing_clock
from flows.storage_errors import Changed, Missing, Unreachable, explained, missing_packages
from stages.runtime.errors import RetryableError, UserError

#: What lies between attempts when the storage does not answer; after the last one the error is the caller's.
WAITS_SECONDS = (0.25, 0.5, 1.0, 2.0)
#: Larger files go up in parts of this size, so that a cut costs one part. S3 takes no less than 5 MiB.
PART_BYTES = 16 * 2**20
READ_BYTES = 2**20
MAX_STARTS = 3

Result = TypeVar("Result")


@dataclass(frozen=True)
class Stored:
    """An object as the storage lists it. The tag changes whenever its bytes do."""

    num_bytes: int
    etag: str


@dataclass(frozen=True)
class Content:
    """An object's bytes, and the tag that they had."""

    data: bytes
    etag: str


class ObjectStorage:
    """What lies below `s3://bucket/prefix`. Keys are relative to the prefix.

    Every method raises UserError for a wrong bucket or credentials, and RetryableError (exit code 75) where
    the storage does not answer after five attempts.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        scheme, separator, rest = self.url.partition("://")
        self.bucket, _, prefix = rest.partition("/")
        if scheme != "s3" or not separator or not self.bucket:
            raise UserError(f"{url!r} is no store", hint="a folder, or s3://BUCKET/PREFIX")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._files = _file_system()

    def check(self) -> None:
        """Raise UserError or RetryableError unless the bucket is there and ours to read."""
        self._ask("list_objects_v2", Prefix=self._prefix, MaxKeys=1)

    def get(self, key: str) -> Content | None:
        """The bytes of a small object; None where there is none."""
        try:
            content: Content = self._call(lambda: _sync(self._files, self._read, key))
        except Missing:
            return None
        return content

    async def _read(self, key: str) -> Content:
        answer = await (await self._client()).get_object(**self._at(key))
        async with answer["Body"] as body:
            return Content(await body.read(), answer["ETag"])

    async def _client(self) -> Any:
        await self._files.set_session()
        return await self._files.get_s3(self.bucket)

    def create(self, key: str, data: bytes) -> str:
        """Write an object that must not be there yet; its tag. Raises Changed where it is there."""
        return str(self._ask("put_object", **self._at(key), Body=data, IfNoneMatch="*")["ETag"])

    def replace(self, key: str, data: bytes, etag: str) -> str:
        """Write over an object that must still have this tag; the new tag. Raises Changed where it has
        not."""
        try:
            return str(self._ask("put_object", **self._at(key), Body=data, IfMatch=etag)["ETag"])
        except Missing:
            raise Changed(key) from None

    def put(self, key: str, data: bytes) -> None:
        """Write a small object, whatever is there."""
        self._ask("put_object", **self._at(key), Body=data)

    def delete(self, key: str, etag: str | None = None) -> None:
        """Remove an object, if it still has this tag where one is given. Raises Changed where it has not."""
        with contextlib.suppress(Missing):
            condition = {"IfMatch": etag} if etag else {}
            self._ask("delete_object", **self._at(key), **condition)

    def listing(self, prefix: str) -> dict[str, Stored]:
        """Everything whose key begins with `prefix`."""
        return {
            each["Key"].removeprefix(self._prefix): Stored(each["Size"], each["ETag"])
            for page in self._pages(prefix)
            for each in page.get("Contents", ())
        }

    def folders(self, prefix: str) -> list[str]:
        """The names of the folders directly below `prefix`, which ends with a slash."""
        pages = self._pages(prefix, Delimiter="/")
        found = (each["Prefix"] for page in pages for each in page.get("CommonPrefixes", ()))
        return [name.rstrip("/").rpartition("/")[2] for name in found]

    def _pages(self, prefix: str, **options: Any) -> Iterator[dict[str, Any]]:
        more: dict[str, Any] = {}
        while True:
            page = self._ask("list_objects_v2", Prefix=self._prefix + prefix, **options, **more)
            yield page
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def download(self, key: str, path: Path, should_stop: Callable[[], bool]) -> None:
        """Fetch an object into a file, from where an earlier attempt was cut off. Raises Missing."""

        def attempt() -> None:
            begin = path.stat().st_size if path.exists() else 0
            _sync(self._files, self._append, key, path, begin, should_stop)

        self._call(attempt)

    async def _append(self, key: str, path: Path, begin: int, should_stop: Callable[[], bool]) -> None:
        span = {"Range": f"bytes={begin}-"} if begin else {}
        answer = await (await self._client()).get_object(**self._at(key), **span)
        with path.open("ab") as file:
            async with answer["Body"] as body:
                while chunk := await body.read(READ_BYTES):
                    file.write(chunk)
                    if should_stop():
                        raise InterruptedError(f"stopped while fetching {key}")

    def upload(self, key: str, path: Path, should_stop: Callable[[], bool]) -> None:
        """Send a file; a large one in parts, leaving out those that an earlier attempt has sent."""
        if path.stat().st_size <= PART_BYTES:
            self.put(key, path.read_bytes())
            return
        for _ in range(MAX_STARTS):
            try:
                self._send_in_parts(key, path, should_stop)
                return
            except (
                Missing
            ):  # who sends the same file, or we with an answer that was lost, has ended this upload
                there = self.listing(key).get(key)
                if there is not None and there.num_bytes == path.stat().st_size:
                    return
        raise RetryableError(f"uploads of {key} to {self.url} are ended by others", hint="run it again")

    def _send_in_parts(self, key: str, path: Path, should_stop: Callable[[], bool]) -> None:
        upload_id = self._unfinished(key) or self._ask("create_multipart_upload", **self._at(key))["UploadId"]
        about = {**self._at(key), "UploadId": upload_id}
        sent = self._sent_parts(about)
        tags = [
            {"PartNumber": number, "ETag": self._send_part(about, number, data, sent.get(number))}
            for number, data in _parts(path, should_stop)
        ]
        self._ask("complete_multipart_upload", **about, MultipartUpload={"Parts": tags})

    def _unfinished(self, key: str) -> str | None:
        """The upload of this very file that an earlier attempt has begun: the key is made of its content."""
        found = self._ask("list_multipart_uploads", Bucket=self.bucket, Prefix=self._prefix + key)
        uploads = [each for each in found.get("Uploads", ()) if each["Key"] == self._prefix + key]
        return uploads[-1]["UploadId"] if uploads else None

    def _sent_parts(self, about: dict[str, Any]) -> dict[int, Stored]:
        found: dict[int, Stored] = {}
        more: dict[str, Any] = {}
        while True:
            page = self._ask("list_parts", **about, **more)
            found |= {p["PartNumber"]: Stored(p["Size"], p["ETag"]) for p in page.get("Parts", ())}
            if not page.get("IsTruncated"):
                return found
            more = {"PartNumberMarker": page["NextPartNumberMarker"]}

    def _send_part(self, about: dict[str, Any], number: int, data: bytes, sent: Stored | None) -> str:
        # Where the storage encrypts with keys of its own, tags are no MD5: then the part is sent again.
        ours = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if sent is not None and sent.num_bytes == len(data) and sent.etag.strip('"') == ours:
            return sent.etag
        return str(self._ask("upload_part", **about, PartNumber=number, Body=data)["ETag"])

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._prefix + key}

    def _ask(self, method: str, **arguments: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._call(lambda: self._files.call_s3(method, **_bucket(self, arguments)))
        return answer

    def _call(self, work: Callable[[], Result]) -> Result:
        """Try it, again where the storage did not answer; errors come out in our words."""
        for wait in (*WAITS_SECONDS, None):
            try:
                return work()
            except Exception as error:
                if signing_clock.corrected(error) and wait is not None:
                    continue
                ours = explained(error, self.url)
                if not isinstance(ours, Unreachable) or wait is None:
                    raise ours from error
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


def _bucket(storage: ObjectStorage, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"Bucket": storage.bucket, **arguments}


def _parts(path: Path, should_stop: Callable[[], bool]) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        number = 1
        while data := file.read(PART_BYTES):
            if should_stop():
                raise InterruptedError(f"stopped while sending {path}")
            yield number, data
            number += 1


def _file_system() -> Any:
    """The client. It tries nothing twice by itself: `_call` does, so that five attempts are five."""
    try:
        import s3fs
    except ImportError:
        raise missing_packages() from None
    signing_clock.install()
    once = {"retries": {"mode": "standard", "total_max_attempts": 1}}
    files = s3fs.S3FileSystem(config_kwargs=once, skip_instance_cache=True, use_listings_cache=False)
    files.retries = 1
    return files


def _sync(files: Any, work: Callable[..., Any], *arguments: Any) -> Any:
    from fsspec.asyn import sync

    return sync(files.loop, work, *arguments)
