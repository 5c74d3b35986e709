"""Builds on a store that hosts share: a real S3 server, a folder per host, processes where one is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.object_storage import ObjectStorage
from flows.records import latest_record
from flows.shared_store import SharedStore
from flows.stores import open_store
from stages.runtime.errors import GlassworksError

sys.path.insert(0, str(Path(__file__).parent))
import plain_build

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
    assert {stage.outcome for stage in latest_record(other.store()).stages} == {"hit", "ran"}


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
            f"waiting for another host: process {dead.pid} on {os.uname().nodename} is making the same"
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
