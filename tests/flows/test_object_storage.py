"""Objects under keys: conditional writes, transfers that go on where they were cut, errors in our words."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from data_contracts.manifest import FileEntry
from flows import object_storage, signing_clock, transfer
from flows.object_storage import ObjectStorage
from flows.storage_errors import Changed, Missing
from flows.stores import open_store
from stages.runtime.errors import RetryableError, UserError
from stages.runtime.store import file_sha256
from tests.flows.manifests import empty_manifest

MIB = 2**20
FEW = {"list_objects_v2": {"MaxKeys": 2}}


def test_a_conditional_write_is_refused_where_the_object_is_not_as_it_was(s3: Any) -> None:
    storage = ObjectStorage(s3.url)
    etag = storage.create("a/x", b"1")
    with pytest.raises(Changed):
        storage.create("a/x", b"2")
    newer = storage.replace("a/x", b"2", etag)
    for wrong in ("a/x", "a/none"):
        with pytest.raises(Changed):
            storage.replace(wrong, b"3", etag)
    with pytest.raises(Changed):
        storage.delete("a/x", etag)
    found = storage.get("a/x")
    assert found is not None and (found.data, found.etag) == (b"2", newer)
    storage.delete("a/x", newer)
    assert storage.get("a/x") is None and storage.listing("") == {}


def test_long_listings_come_in_pages(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = ObjectStorage(s3.url)
    ask = storage._ask
    monkeypatch.setattr(storage, "_ask", lambda method, **asked: ask(method, **asked, **FEW.get(method, {})))
    for number in range(5):
        storage.put(f"stage/{number}/manifest.json", b"{}")
    assert len(storage.listing("stage/")) == 5
    assert storage.folders("stage/") == ["0", "1", "2", "3", "4"]


def test_a_large_file_goes_up_in_parts_and_none_of_them_twice(
    tmp_path: Path, s3: Any, proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_storage, "PART_BYTES", 5 * MIB)
    monkeypatch.setattr(object_storage, "WAITS_SECONDS", (0.05,))
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(13 * MIB))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    storage = ObjectStorage(s3.url)
    storage.check()
    proxy.cut_after(up=8 * MIB)
    with pytest.raises(RetryableError, match="cannot be reached"):
        storage.upload("weights", file, lambda: False)
    assert storage_without_proxy(s3, monkeypatch).listing("") == {}
    proxy.mend()
    before = proxy.sent["up"]
    storage.upload("weights", file, lambda: False)
    assert proxy.sent["up"] - before < 9 * MIB
    copy = tmp_path / "copy"
    copy.write_bytes(file.read_bytes()[: 4 * MIB])
    before = proxy.sent["down"]
    storage.download("weights", copy, lambda: False)
    assert copy.read_bytes() == file.read_bytes()
    assert proxy.sent["down"] - before < 10 * MIB


def test_an_upload_that_somebody_else_ends(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two builds send the same file; the one is done, or gives up, while the other is in the middle."""
    monkeypatch.setattr(object_storage, "PART_BYTES", 5 * MIB)
    monkeypatch.setattr(object_storage, "WAITS_SECONDS", (0.05,))
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(11 * MIB))
    first, second = ObjectStorage(s3.url), ObjectStorage(s3.url)
    first.upload("half", file, parts_until(2, lambda: abort_uploads(first)))
    first.upload("weights", file, parts_until(2, lambda: second.upload("weights", file, lambda: False)))
    listed = {key: stored.num_bytes for key, stored in second.listing("").items()}
    assert listed == {"half": 11 * MIB, "weights": 11 * MIB}


def parts_until(number: int, act: Callable[[], object]) -> Callable[[], bool]:
    """For `should_stop`, which is asked before each part: does something once, and goes on."""
    asked = itertools.count(1)

    def should_stop() -> bool:
        if next(asked) == number:
            act()
        return False

    return should_stop


def abort_uploads(storage: ObjectStorage) -> None:
    for upload in storage._ask("list_multipart_uploads")["Uploads"]:
        storage._ask("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])


def test_a_file_that_an_earlier_attempt_has_fetched_whole_is_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []

    def note(path: Path) -> str:
        hashed.append(path)
        return file_sha256(path)

    monkeypatch.setattr(transfer, "file_sha256", note)
    part = tmp_path / "weights.part"
    part.write_bytes(b"1" * 10)
    entry = FileEntry(path="weights", num_bytes=10, sha256=file_sha256(part))
    unused: Any = None
    transfer.Transfer(unused, empty_manifest("sft", files=(entry,)), tmp_path).fetch()
    assert hashed == [part]
    assert (tmp_path / "weights").read_bytes() == b"1" * 10


def storage_without_proxy(s3: Any, monkeypatch: pytest.MonkeyPatch) -> ObjectStorage:
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3.port}")
        storage = ObjectStorage(s3.url)
        storage.check()
    return storage


def test_a_short_cut_is_got_over(s3: Any, proxy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    storage = ObjectStorage(s3.url)
    storage.put("x", b"1")
    proxy.cut_after(up=0)
    monkeypatch.setattr(object_storage.time, "sleep", lambda seconds: proxy.mend())
    found = storage.get("x")
    assert found is not None and found.data == b"1"


def test_a_transfer_can_be_stopped(tmp_path: Path, s3: Any) -> None:
    storage = ObjectStorage(s3.url)
    storage.put("x", b"1" * 10)
    with pytest.raises(InterruptedError):
        storage.download("x", tmp_path / "x", lambda: True)
    with pytest.raises(Missing):
        storage.download("none", tmp_path / "none", lambda: False)


@pytest.mark.parametrize(
    ("variable", "value", "error", "said"),
    [
        ("AWS_ACCESS_KEY_ID", "wrong", UserError, "InvalidAccessKeyId.*AWS_ACCESS_KEY_ID=..."),
        ("AWS_ACCESS_KEY_ID", None, UserError, "Unable to locate credentials.*AWS_ACCESS_KEY_ID=..."),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", RetryableError, "cannot be reached at http://127.0.0.1:9"),
    ],
)
def test_who_may_not_or_cannot_is_told_why(
    s3: Any, monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None, error: Any, said: str
) -> None:
    monkeypatch.setattr(object_storage, "WAITS_SECONDS", (0.05, 0.05))
    monkeypatch.delenv(variable) if value is None else monkeypatch.setenv(variable, value)
    if value is None:
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(error, match=f"(?s){said}"):
        open_store(s3.url)


@pytest.mark.parametrize("url", ["s3://no-such-bucket-here/models", "s3://", "gs://bucket/models"])
def test_an_address_that_is_no_store(s3: Any, url: str) -> None:
    with pytest.raises(UserError, match=r"there is no such bucket|is no store"):
        open_store(url)


def test_a_wrong_clock_is_corrected_by_the_servers(
    s3: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signing_clock, "_ahead_of_us", timedelta())
    monkeypatch.setattr(signing_clock, "host_now", lambda: datetime.now(UTC) - timedelta(hours=1))
    storage = ObjectStorage(s3.url)
    storage.put("x", b"1")
    storage.put("y", b"1")
    assert capsys.readouterr().err.count("this host's clock is 1h00m behind the store's") == 1
