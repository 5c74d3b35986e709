"""Builds on a store that hosts share: a real S3 server, a folder per host, processes where one is killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from typer.testing import CliRunner

from data_contracts.manifest import PartEntry
from flows.cli import app
from flows.object_storage import ObjectStorage, Stored
from flows.records import artifact_of, latest_record, read_record, run_ids
from flows.run_report import gather
from flows.shared_garbage import find_remote_garbage, remove_remote
from flows.shared_store import SharedStore
from flows.shared_store_check import check_shared
from flows.storage_errors import explained
from flows.store_use import alone_among_hosts, in_use
from flows.stores import open_store
from stages.runtime.errors import GlassworksError, RetryableError, UserError
from stages.runtime.store import Artifact, list_files, part_digest, write_durably

sys.path.insert(0, str(Path(__file__).parent))
import plain_build

pytestmark = pytest.mark.host

FIVE = ("first", "second", "left", "right", "last")
BIG = ("--set", "first.padding_kib=4096")


class Host:
    """A host: its own folder, its own way to the server."""

    def __init__(self, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch, endpoint: str = "") -> None:
        self.url, self.folder, self._patch = url, folder, monkeypatch
        self._variables = {"GLASSWORKS_CACHE": str(folder)}
        self._variables |= {"AWS_ENDPOINT_URL": endpoint} if endpoint else {}

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Begin a build as a process."""
        return subprocess.Popen(
            [sys.executable, plain_build.__file__, self.url, *options],
            env=os.environ | self._variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def build(self, *options: str) -> tuple[int, str]:
        """Build in this process; the exit code that it would have, and what was said."""
        told: list[str] = []
        try:
            asyncio.run(plain_build.run(plain_build.prepared(self.store(), options, told.append)))
        except GlassworksError as error:
            return error.exit_code, "\n".join([*told, str(error)])
        return 0, "\n".join(told)

    def store(self) -> SharedStore:
        """The store as this host has it."""
        with self._patch.context() as patch:
            for name, value in self._variables.items():
                patch.setenv(name, value)
            store = open_store(self.url)
        assert isinstance(store, SharedStore)
        return store


@pytest.fixture
def host(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Host]:
    """Makes a host of that name."""
    return lambda name, endpoint="": Host(tmp_path / name, s3.url, monkeypatch, endpoint)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def ran(said: str) -> Counter[str]:
    """Which stages were made by the build that said this."""
    return Counter(line.split()[0] for line in said.splitlines() if line.split()[1:2] == ["done"])


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def manifests(url: str) -> dict[str, str]:
    """Key -> tag of what can be seen as an artifact."""
    found = ObjectStorage(url).listing("artifacts/").items()
    return {key: stored.etag for key, stored in found if key.endswith("manifest.json")}


def text_of(url: str, stage: str) -> str:
    return next(key for key in ObjectStorage(url).listing(f"artifacts/{stage}/") if key.endswith("text.txt"))


def flip_a_byte(url: str, key: str) -> None:
    storage = ObjectStorage(url)
    content = storage.get(key)
    assert content is not None
    storage.put(key, bytes([content.data[0] ^ 1]) + content.data[1:])


def test_what_one_host_has_made_the_other_takes(tmp_path: Path, host: Callable[..., Host]) -> None:
    code, said = host("a").build()
    assert code == 0 and ran(said) == Counter(FIVE), said
    other = host("b")
    code, said = other.build()
    assert code == 0 and said.count(" HIT ") == 5, said
    assert not list(tmp_path.glob("b/*/artifacts/*/*")), "nobody needed the files"
    code, said = other.build("--set", "last.steps=3")
    assert code == 0 and ran(said) == Counter(["last"]), said
    assert {p.parent.name for p in tmp_path.glob("b/*/artifacts/*/*")} == {"left", "right", "last"}
    records = [read_record(other.store(), run) for run in run_ids(other.store())]
    assert Counter(stage.outcome for record in records for stage in record.stages) == {"ran": 6, "hit": 9}


def test_two_at_once_make_each_stage_once_though_one_clock_is_an_hour_off(
    s3: Any, host: Callable[..., Host]
) -> None:
    slow = ("--set", "first.seconds=1", "--set", "last.seconds=0.5")
    both = [host("a").start(*slow, "--hours-ahead", "1"), host("b").start(*slow)]
    told = [ended(process) for process in both]
    assert [code for code, _ in told] == [0, 0], told
    assert "this host's clock is 1h00m ahead of the store's" in told[0][1]
    assert ran(told[0][1]) + ran(told[1][1]) == Counter(FIVE)
    assert any("waiting for another host" in said for _, said in told)
    assert any("made by another host meanwhile" in said for _, said in told)
    assert ObjectStorage(s3.url).listing("claims/") == {}


def test_a_cut_in_mid_upload_is_retried_and_goes_on(s3: Any, proxy: Any, host: Callable[..., Host]) -> None:
    cut = host("a", proxy.url)
    store = cut.store()
    assert store.storage.get("none") is None  # the client knows its server now
    proxy.cut_after(up=2_000_000)
    code, said = cut.build(*BIG)
    assert proxy.is_cut
    assert code == 75 and "cannot be reached" in said and "the same command goes on from here" in said, said
    assert manifests(s3.url) == {}, "half an artifact is to be seen"
    proxy.mend()
    code, said = cut.build(*BIG)
    assert code == 0 and "first HIT" in said and ran(said) == Counter(FIVE[1:]), said
    assert len(manifests(s3.url)) == 5


def test_a_cut_in_mid_download_goes_on_from_there(proxy: Any, host: Callable[..., Host]) -> None:
    assert host("a").build(*BIG)[0] == 0
    other = host("b", proxy.url)
    changed = (*BIG, "--until", "right", "--set", 'right.word="sand"')
    proxy.cut_after(down=2_000_000)
    code, said = other.build(*changed)
    assert code == 75, said
    proxy.mend()
    before = proxy.sent["down"]
    code, said = other.build(*changed)
    assert code == 0 and ran(said) == Counter(["right"]), said
    assert proxy.sent["down"] - before < 3_500_000, "what was there was fetched again"


def test_kill_9_during_the_upload(s3: Any, proxy: Any, host: Callable[..., Host]) -> None:
    killed = host("a", proxy.url)
    proxy.seconds_per_chunk = 0.1
    build = killed.start(*BIG, "--until", "first")
    wait_for(lambda: proxy.sent["up"] > 500_000)
    os.killpg(build.pid, signal.SIGKILL)
    build.communicate()
    assert manifests(s3.url) == {}
    proxy.seconds_per_chunk = 0.0
    code, said = killed.build(*BIG, "--until", "first")
    assert code == 0 and "first HIT" in said and not ran(said), said
    assert len(manifests(s3.url)) == 1


def test_the_claim_of_a_dead_host_is_taken_over(s3: Any, host: Callable[..., Host]) -> None:
    dead = host("a").start("--until", "first", "--set", "first.steps=600", "--set", "first.seconds=0.1")
    wait_for(lambda: ObjectStorage(s3.url).listing("claims/first/"))
    os.killpg(dead.pid, signal.SIGKILL)
    dead.communicate()
    [claim] = ObjectStorage(s3.url).listing("claims/first/")
    name = claim.removeprefix("claims/").removesuffix(".json")
    told: list[str] = []
    with host("b").store().claims.hold(name, told.append):
        assert told == [
            f"waiting for another host: process {dead.pid} on {os.uname().nodename} is making {name}"
        ]


def test_who_slept_too_long_does_not_publish_over_the_other(
    tmp_path: Path, s3: Any, host: Callable[..., Host]
) -> None:
    slow = ("--until", "first", "--set", "first.seconds=0.3", "--set", "first.steps=6")
    sleeper = host("a").start(*slow)
    wait_for(lambda: list(tmp_path.glob("a/*/work/first/*/checkpoints/steps")))
    os.kill(sleeper.pid, signal.SIGSTOP)
    code, said = host("b").build(*slow)
    assert code == 0 and ran(said) == Counter(["first"]), said
    before = manifests(s3.url)
    os.kill(sleeper.pid, signal.SIGCONT)
    code, said = ended(sleeper)
    assert code == 0, said
    assert manifests(s3.url) == before


def test_a_damaged_file_is_found_and_made_again(s3: Any, host: Callable[..., Host]) -> None:
    assert host("a").build()[0] == 0
    damaged = text_of(s3.url, "right")
    flip_a_byte(s3.url, damaged)
    code, said = host("b").build("--set", "last.steps=3")
    assert code == 0 and ran(said) == Counter(["right", "last"]), said
    assert "text/text.txt of right" in said and "is damaged" in said
    content = ObjectStorage(s3.url).get(damaged)
    assert content is not None and content.data == b"glass glass"
    code, said = host("c").build("--set", "last.steps=4")
    assert code == 0 and ran(said) == Counter(["last"]), said


def test_a_file_that_is_gone_is_sent_again_by_who_has_it(s3: Any, host: Callable[..., Host]) -> None:
    whole = host("a")
    assert whole.build()[0] == 0
    gone = text_of(s3.url, "right")
    ObjectStorage(s3.url).delete(gone)
    assert host("b").store().find("right", gone.split("/")[2]) is None
    code, said = whole.build()
    assert code == 0 and said.count(" HIT ") == 5, said
    assert text_of(s3.url, "right") == gone


def test_forced_stages_replace_what_is_there(s3: Any, host: Callable[..., Host]) -> None:
    assert host("a").build()[0] == 0
    before = manifests(s3.url)
    code, said = host("b").build("--force", "right")
    assert code == 0 and ran(said) == Counter(["right"]), said
    after = manifests(s3.url)
    assert before.keys() == after.keys()
    assert [key.split("/")[1] for key in before if before[key] != after[key]] == ["right"]


@contextmanager
def while_in_use(store: SharedStore) -> Iterator[None]:
    """A build uses the store in an event loop of its own, on another thread."""
    begun, over = threading.Event(), threading.Event()

    async def hold() -> None:
        async with in_use(store):
            begun.set()
            await asyncio.to_thread(over.wait)

    holding = threading.Thread(target=lambda: asyncio.run(hold()))
    holding.start()
    try:
        assert begun.wait(60)
        yield
    finally:
        over.set()
        holding.join()


def test_a_build_that_waits_for_a_clear_up_can_be_stopped(s3: Any, host: Callable[..., Host]) -> None:
    """Its event loop goes on, so that it hears of Ctrl-C."""

    async def give_up() -> None:
        async with asyncio.timeout(0.3), in_use(host("b").store()):
            raise AssertionError("held beside a clear-up")

    with alone_among_hosts(host("a").store()), pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert ObjectStorage(s3.url).listing("claims/") == {}


def test_a_build_that_was_taken_for_dead_ends(s3: Any, host: Callable[..., Host]) -> None:
    storage = ObjectStorage(s3.url)

    async def sleep_too_long() -> None:
        async with in_use(host("a").store()):
            [claim] = storage.listing("claims/")
            storage.delete(claim)
            await asyncio.sleep(60)

    with pytest.raises(RetryableError, match=r"for 2 s, and another host has taken it for dead") as caught:
        asyncio.run(sleep_too_long())
    assert "run the same command again" in caught.value.hint


def test_a_record_that_is_sent_during_a_listing_stays(
    s3: Any, host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes of one host: the one looks what there is while the other sends what it has."""
    one, other = host("a").store(), host("a").store()
    write_durably(one.root / "runs" / "20260101-a.json", "{}")
    listing = one.storage.listing

    def slow(prefix: str) -> dict[str, Stored]:
        found = listing(prefix)
        if prefix == "runs/":
            other.share_run("20260101-a")
        return found

    monkeypatch.setattr(one.storage, "listing", slow)
    one.refresh_runs()
    assert run_ids(one) == ["20260101-a"]


def test_gc_keeps_out_of_the_way_of_builds_and_drops_what_no_run_uses(
    s3: Any, host: Callable[..., Host]
) -> None:
    one, other = host("a"), host("b")
    assert one.build()[0] == 0
    assert one.build("--force", "right")[0] == 0
    assert other.build("--set", "last.steps=3")[0] == 0
    store = one.store()
    with while_in_use(other.store()), pytest.raises(RetryableError, match="is in use by process"):
        with alone_among_hosts(store):
            pass
    with alone_among_hosts(one.store()):
        garbage = find_remote_garbage(store, keep_runs=1)
        assert {(item.name.split("/")[1], item.reason) for item in garbage if "artifacts" in item.name} == {
            ("last", "no kept run uses it"),
            ("right", "of an earlier run of the stage"),
        }
        assert sum("old run" in item.reason for item in garbage) == 2
        assert remove_remote(store, garbage) > 0
    assert find_remote_garbage(one.store(), keep_runs=1) == []
    assert len(run_ids(one.store())) == 1, "what was dropped has come back"
    code, said = host("c").build("--set", "last.steps=3")
    assert code == 0 and said.count(" HIT ") == 5, said


def test_the_claims_of_dead_builds_keep_nobody_out(s3: Any, host: Callable[..., Host]) -> None:
    ObjectStorage(s3.url).put("claims/builds/dead.json", b'{"token": "of the dead"}')
    store = host("a").store()
    with alone_among_hosts(store):
        assert store.claims.live() == []
    assert ObjectStorage(s3.url).listing("claims/") == {}


def test_what_people_look_at_comes_here(s3: Any, host: Callable[..., Host]) -> None:
    assert host("a").build()[0] == 0
    store = host("b").store()
    record = latest_record(store)
    assert "text.txt" in str(list(artifact_of(store, record, "right").part("text").iterdir()))
    assert store.find_here("left", record.stages[2].fingerprint or "") is None
    manifests_of_run, events = gather(store, record)
    assert manifests_of_run.keys() == events.keys() == set(FIVE)


def test_two_results_of_one_stage_are_told_and_the_first_counts(s3: Any, host: Callable[..., Host]) -> None:
    one, other = host("a").store(), host("b").store()
    assert host("a").build("--until", "first")[0] == 0
    [ours] = one.artifacts("first")
    theirs_folder = other.artifact_dir("first", ours.manifest.fingerprint)
    shutil.copytree(ours.folder, theirs_folder)
    (theirs_folder / "text" / "text.txt").write_text("came out otherwise")
    files = tuple(list_files(theirs_folder))
    part = PartEntry(contract="text@1", digest=part_digest(files, "text"))
    manifest = ours.manifest.model_copy(update={"files": files, "parts": {"text": part}})
    (theirs_folder / "manifest.json").write_text(manifest.model_dump_json())
    told: list[str] = []
    counts = other.publish(Artifact(theirs_folder, manifest), say=told.append)
    assert "came out otherwise on another host (text); theirs counts" in told[0]
    assert (counts.part("text") / "text.txt").read_text() == "glass"


def test_doctor_tries_the_storage(
    s3: Any, host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = host("a").store()
    assert check_shared(store).passed
    assert ObjectStorage(s3.url).listing("claims/") == {}
    monkeypatch.setattr(store.storage, "create", lambda key, data: store.storage.put(key, data) or '"etag"')
    check = check_shared(store)
    assert not check.passed and "If-None-Match" in check.found and "conditional writes" in check.remedy
    assert not check.optional


def heedless(storage: ObjectStorage) -> Callable[..., None]:
    """As MinIO removes objects: whatever the condition."""
    delete = storage.delete
    return lambda key, etag=None: delete(key)


def refusing(storage: ObjectStorage) -> Callable[..., None]:
    """As AWS did until 2025: no delete that has a condition."""
    delete = storage.delete

    def refuse(key: str, etag: str | None = None) -> None:
        if etag is not None:
            answer = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
            raise explained(ClientError(answer, "DeleteObject"), storage.url)
        delete(key)

    return refuse


@pytest.mark.parametrize(("server", "words"), [(heedless, "is not heeded"), (refusing, "refuses conditions")])
def test_without_conditional_deletes_claims_hold_and_doctor_says_so(
    s3: Any, host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch, server: Any, words: str
) -> None:
    store, other = host("a").store(), host("b").store()
    monkeypatch.setattr(store.storage, "delete", server(store.storage))
    check = check_shared(store)
    assert (check.passed, check.optional) == (False, True)
    assert words in check.found and "builds do without" in check.remedy
    ours = store.claims.acquire("first/0123", print, lambda: False)
    store.claims.release(ours)
    assert ObjectStorage(s3.url).listing("claims/") == {}
    ours = store.claims.acquire("first/0123", print, lambda: False)
    ours._released.set()  # this host sleeps from here on
    theirs = other.claims.acquire("first/0123", print, lambda: False)
    store.claims.release(ours)
    assert list(ObjectStorage(s3.url).listing("claims/")) == ["claims/first/0123.json"]
    other.claims.release(theirs)


@pytest.mark.parametrize("command", [["up"], ["plan"], ["show", "sft"], ["verify"], ["gc"], ["doctor"]])
def test_commands_say_what_is_wrong_with_the_address(s3: Any, command: list[str]) -> None:
    done = CliRunner().invoke(app, [*command, "--store", "s3://no-such-bucket-here/models"])
    if command == ["doctor"]:
        assert "there is no such bucket" in done.output and done.exit_code == 1
    else:
        assert isinstance(done.exception, UserError) and "there is no such bucket" in str(done.exception)


def test_the_dry_run_of_an_empty_bucket(s3: Any) -> None:
    done = CliRunner().invoke(app, ["plan", "--preset", "tiny", "--store", s3.url])
    assert done.exit_code == 0, done.output
    assert done.output.count("never built in this store") == 9
    assert ObjectStorage(s3.url).listing("") == {}


def test_a_job_of_a_cluster_needs_a_volume(s3: Any) -> None:
    done = CliRunner().invoke(app, ["job", "sft", "--image", "x", "--store", s3.url])
    assert isinstance(done.exception, UserError) and "a Job reads and writes a volume" in str(done.exception)
