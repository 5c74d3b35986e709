"""Remote files, from servers that run here: fetched once, resumed, checked, and counted by content."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from stages.corpus_prep.reading import downloads, remote_stores
from stages.corpus_prep.reading.addresses import parse_address
from stages.corpus_prep.reading.damage import ReadNotes
from stages.corpus_prep.reading.downloads import FOLDER_VARIABLE, OFFLINE_VARIABLE, Downloads
from stages.corpus_prep.reading.outside import outside_inputs
from stages.corpus_prep.reading.readers import read_rows
from stages.corpus_prep.reading.sources import expand, source_digests
from stages.corpus_prep.spec import CorpusPrepConfig
from stages.runtime.errors import RetryableError, UserError

DATA = b'{"text": "over the wire"}\n' * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """Files in a dict, with ETag and Range; and the hub's way to list a data set."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []
    cut_after: ClassVar[list[int]] = []
    """Bytes after which the next answers break off."""
    ranges: ClassVar[bool] = True

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        self.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        data = self.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(asked[1]) if asked and self.ranges else 0
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        self.send_header("ETag", f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"')
        self.end_headers()
        if with_body:
            body = data[begin:]
            self.wfile.write(body[: self.cut_after.pop(0)] if self.cut_after else body)

    def log_message(self, *_args: object) -> None:
        """Silent."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address; the download folder is a fresh one."""
    Handler.files, Handler.asked, Handler.cut_after, Handler.ranges = {}, [], [], True
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "downloads"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(OFFLINE_VARIABLE, raising=False)
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    thread.join()
    listening.server_close()


def _digests(source: str) -> dict[str, str]:
    return source_digests(CorpusPrepConfig(sources=(source,)))


def _texts(source: str) -> list[str]:
    (file,) = expand("sources", [source])
    return [row["text"] for row in read_rows(file, ReadNotes())]


def test_a_pinned_file_is_planned_without_a_network_and_fetched_once(server: str) -> None:
    Handler.files["/a.jsonl"] = DATA
    pinned = f"{server}/a.jsonl#sha256={SHA256}"
    assert _digests(pinned)["000 a.jsonl"] == SHA256
    assert Handler.asked == []
    assert _texts(pinned) == ["over the wire"] * 1000
    assert len(Handler.asked) == 2
    assert _texts(f"{pinned};licence=CC0-1.0") == ["over the wire"] * 1000
    assert len(Handler.asked) == 2
    (file,) = expand("sources", [pinned])
    assert file.origin == pinned


def test_a_wrong_sha256_is_refused_and_both_are_said(server: str, tmp_path: Path) -> None:
    Handler.files["/a.jsonl"] = DATA + b"more"
    with pytest.raises(UserError) as caught:
        _texts(f"{server}/a.jsonl#sha256={SHA256}")
    assert SHA256 in caught.value.message
    assert hashlib.sha256(DATA + b"more").hexdigest() in caught.value.message
    assert not list((tmp_path / "downloads").rglob("a.jsonl"))


def test_what_is_not_pinned_counts_by_the_content_that_came(server: str) -> None:
    Handler.files["/a.jsonl"] = DATA
    address = f"{server}/a.jsonl"
    assert _digests(address) == {"000 a.jsonl": SHA256, "000 a.jsonl options": address}
    assert Handler.asked == ["HEAD /a.jsonl", "GET /a.jsonl"]
    assert _digests(address)["000 a.jsonl"] == SHA256  # the same mark: not fetched again
    assert Handler.asked[2:] == ["HEAD /a.jsonl"]
    Handler.files["/a.jsonl"] = DATA + b'{"text": "new"}\n'
    assert _digests(address)["000 a.jsonl"] == hashlib.sha256(Handler.files["/a.jsonl"]).hexdigest()


def test_a_copy_that_somebody_changed_is_fetched_anew(server: str) -> None:
    Handler.files["/a.jsonl"] = DATA
    pinned = f"{server}/a.jsonl#sha256={SHA256}"
    (file,) = expand("sources", [pinned])
    file.path.write_bytes(b"changed")
    assert _texts(pinned) == ["over the wire"] * 1000


@pytest.mark.parametrize("ranges", [True, False])
def test_a_transfer_that_broke_goes_on_where_it_ended(server: str, ranges: bool) -> None:
    Handler.files["/a.jsonl"], Handler.ranges = DATA, ranges
    Handler.cut_after.append(7000)
    seen: list[tuple[int, int]] = []
    store = Downloads(progress=lambda done, total, _url: seen.append((done, total)))
    fetched = store.fetch(parse_address(f"{server}/a.jsonl"))
    assert fetched.sha256 == SHA256
    assert "GET /a.jsonl bytes=7000-" in Handler.asked
    assert seen[-1] == (len(DATA), len(DATA))


def test_what_came_before_a_failure_is_kept_for_the_next_try(server: str) -> None:
    Handler.files["/a.jsonl"] = DATA
    Handler.cut_after += [100, 200, 300, 400]
    with pytest.raises(RetryableError, match="after 1,000 of 26,000 bytes") as caught:
        Downloads().fetch(parse_address(f"{server}/a.jsonl"))
    assert "kept" in caught.value.hint
    assert Downloads().fetch(parse_address(f"{server}/a.jsonl")).sha256 == SHA256
    assert Handler.asked[-1] == "GET /a.jsonl bytes=1000-"


def test_a_file_that_changed_between_two_tries_is_not_mixed(server: str) -> None:
    Handler.files["/a.jsonl"] = b"x" * 26_000
    Handler.cut_after += [100, 200, 300, 400]
    with pytest.raises(RetryableError):
        Downloads().fetch(parse_address(f"{server}/a.jsonl"))
    Handler.files["/a.jsonl"] = DATA
    assert Downloads().fetch(parse_address(f"{server}/a.jsonl")).sha256 == SHA256


def test_without_a_network_what_lies_here_counts(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Handler.files["/a.jsonl"] = DATA
    outside = outside_inputs(CorpusPrepConfig(sources=(f"{server}/a.jsonl",)))
    assert outside.environment[OFFLINE_VARIABLE] == "1"
    assert any(folder == Path(outside.environment[FOLDER_VARIABLE]) for folder in outside.same_place)
    Handler.asked.clear()
    for name, value in outside.environment.items():
        monkeypatch.setenv(name, value)
    assert len(_texts(f"{server}/a.jsonl")) == 1000
    assert Handler.asked == []
    with pytest.raises(UserError, match="is not in"):
        _texts(f"{server}/b.jsonl")


def test_mistakes_in_addresses(server: str) -> None:
    with pytest.raises(UserError, match="404"):
        _texts(f"{server}/nothing.jsonl")
    with pytest.raises(UserError, match=r"did you mean 'sha256'"):
        parse_address("https://a.org/b.txt#sha265=00")
    with pytest.raises(UserError, match="no address of a data set"):
        parse_address("hf://models/a/b")
    with pytest.raises(UserError, match="does not list its files"):
        _texts(f"{server}/*.jsonl")
    with pytest.raises(UserError, match="holds no readable file"):
        _texts(f"{server}/a.bin#sha256={SHA256}")
    with pytest.raises(RetryableError, match="could not be read"):
        _texts("http://127.0.0.1:9/a.txt")


@pytest.fixture
def hub(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hub's interface with one data set at two revisions; its address."""
    monkeypatch.setenv("HF_ENDPOINT", server)
    tree = [
        {"type": "directory", "path": "zh"},
        {"type": "file", "path": "zh/b.jsonl", "size": 9, "lfs": {"oid": SHA256}},
        {"type": "file", "path": "zh/a b.jsonl", "size": 9},
        {"type": "file", "path": "picture.png", "size": 9},
    ]
    Handler.files |= {
        "/api/datasets/o/n/revision/main": json.dumps({"sha": COMMIT}).encode(),
        f"/api/datasets/o/n/tree/{COMMIT}?recursive=true": json.dumps(tree).encode(),
        f"/api/datasets/o/n/tree/{COMMIT}/zh?recursive=true": json.dumps(tree[1:3]).encode(),
        f"/datasets/o/n/resolve/{COMMIT}/zh/b.jsonl": DATA,
        f"/datasets/o/n/resolve/{COMMIT}/zh/a%20b.jsonl": DATA,
    }
    return "hf://datasets/o/n"


def test_a_data_set_of_the_hub_counts_by_its_commit(hub: str) -> None:
    digests = _digests(hub)
    assert digests["000 zh/a b.jsonl"] == COMMIT
    assert digests["001 zh/b.jsonl"] == SHA256
    origin = f"hf://datasets/o/n@{COMMIT}/picture.png"
    assert digests[f"refused {origin}"] == "unknown_kind"
    assert not any("/resolve/" in asked for asked in Handler.asked)
    asked = len(Handler.asked)
    assert _digests(f"{hub}@{COMMIT}") == digests
    _digests(f"{hub}@{COMMIT}")
    assert len(Handler.asked) == asked + 1  # the listing of a commit is kept


@pytest.mark.parametrize("pattern", ["/zh", "@main/zh/*.jsonl", f"@{COMMIT}/zh/[ab]*.jsonl"])
def test_files_of_a_data_set(hub: str, pattern: str) -> None:
    files = expand("sources", [hub + pattern])
    assert [file.name for file in files] == ["zh/a b.jsonl", "zh/b.jsonl"]
    assert all(file.path.read_bytes() == DATA for file in files)
    assert files[0].origin == f"hf://datasets/o/n@{COMMIT}/zh/a b.jsonl"


def test_a_token_is_sent_to_the_hub(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str | None] = []
    ask = remote_stores._answer

    def listening(request, address):  # type: ignore[no-untyped-def]
        sent.append(request.get_header("Authorization"))
        return ask(request, address)

    monkeypatch.setattr(remote_stores, "_answer", listening)
    monkeypatch.setenv("HF_TOKEN", "a-token-of-this-test")
    assert _texts(f"{hub}/zh/b.jsonl")[0] == "over the wire"
    assert set(sent) == {"Bearer a-token-of-this-test"}


def test_any_store_that_fsspec_knows(server: str) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/data/a.jsonl", DATA)
    memory.pipe("/bucket/data/b.txt", b"words")
    files = expand("sources", ["memory://bucket/data"])
    assert [(file.name, file.origin) for file in files] == [
        ("a.jsonl", "memory:///bucket/data/a.jsonl"),
        ("b.txt", "memory:///bucket/data/b.txt"),
    ]
    assert files[0].path.read_bytes() == DATA
    assert [file.name for file in expand("sources", ["memory://bucket/*/*.txt"])] == ["b.txt"]
    with pytest.raises(UserError, match=r"install adlfs|adlfs"):
        expand("sources", ["abfs://bucket/data"])
    assert downloads.downloads_folder().exists()
