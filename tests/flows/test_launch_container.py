"""Every way in which a container ends, or never begins, has its own words. Needs no engine."""

from __future__ import annotations

import asyncio
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from requests.exceptions import ConnectionError as NoConnection

from flows import docker_engine
from flows.backends import backend_named, backend_of_worker, parse_limits
from flows.container_run import Ended, _await_end, stop_without_engine
from flows.docker_engine import EngineFacts, Image, build_failed, engine_away
from flows.images import CODE_LABEL, code_digest, image_name
from flows.launch_container import DockerBackend, container_error
from flows.threads import in_thread, undisturbed
from stages.catalog import STAGES
from stages.runtime.errors import (
    ContractError,
    GlassworksError,
    RetryableError,
    StopRequested,
    UserError,
)
from stages.runtime.spec import Limits

SPEC = next(spec for spec in STAGES if spec.name == "dpo")


def error(
    code: int, event: dict[str, Any] | None = None, oom: bool = False, text: str = ""
) -> GlassworksError:
    return container_error(SPEC, Limits(memory_gib=4), Ended(code, oom, text), event)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(2, UserError), (3, ContractError), (75, RetryableError), (143, StopRequested), (1, GlassworksError)],
)
def test_exit_codes_are_those_of_a_process(code: int, kind: type) -> None:
    found = error(code, {"event": "error", "message": "found a, expected b", "hint": "type c"})
    assert type(found) is kind
    assert (found.message, found.hint) == ("found a, expected b", "type c")


def test_a_killed_container_is_said_to_be_killed() -> None:
    assert "dpo was killed by SIGSEGV" in error(139).message
    assert "dpo was killed by SIGKILL" in error(137).message


def test_out_of_memory_names_the_limit_and_how_to_raise_it() -> None:
    found = error(137, oom=True)
    assert isinstance(found, UserError)
    assert "more than its 4 GiB of memory" in found.message
    assert "--limit dpo.memory_gib=8" in found.hint


def test_a_dead_engine_and_a_closed_one_differ() -> None:
    dead = engine_away(NoConnection("Connection aborted, ConnectionRefusedError(111)"), in_container=False)
    assert isinstance(dead, RetryableError)
    assert "systemctl start docker" in dead.hint
    refused = NoConnection("('Connection aborted.', PermissionError(13, 'Permission denied'))")
    closed = engine_away(refused, in_container=False)
    assert isinstance(closed, UserError)
    assert "--groups docker" in closed.hint
    for found in (dead, closed):
        assert "--backend process" in found.hint


def test_in_a_container_the_remedies_are_those_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(docker_engine, "SOCKET", tmp_path / "docker.sock")
    absent = engine_away(NoConnection("FileNotFoundError(2)"), in_container=True)
    assert isinstance(absent, UserError)
    assert "volumes" in absent.hint
    (tmp_path / "docker.sock").touch()
    dead = engine_away(NoConnection("ConnectionRefusedError(111)"), in_container=True)
    assert isinstance(dead, RetryableError)
    closed = engine_away(NoConnection("PermissionError(13, 'Permission denied')"), in_container=True)
    assert "group_add" in closed.hint
    assert "usermod" not in closed.hint


def test_where_no_engine_is_the_first_request_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(RetryableError, match="no Docker Engine answers at unix:") as caught:
        asyncio.run(DockerBackend().check(lambda: [SPEC]))
    assert "--backend process" in caught.value.hint
    asyncio.run(DockerBackend().check(lambda: []))  # a build of hits needs no engine


@pytest.mark.parametrize(
    ("last", "hint"),
    [
        ("ERROR: No matching distribution found for torch==2.13.0+cpu", "--wheelhouse"),
        ("ssl.SSLCertVerificationError: CERTIFICATE_VERIFY_FAILED", "--ca-certificates"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "images lock"),
        ("pull access denied for python, repository does not exist", "--base-image"),
    ],
)
def test_a_failed_build_says_what_to_pass(last: str, hint: str) -> None:
    assert hint in build_failed("glassworks/torch:dev", ["Step 1", last]).hint


def event(action: str, **attributes: str) -> dict[str, Any]:
    return {"Action": action, "Actor": {"Attributes": attributes}}


def test_the_end_is_read_from_the_engines_events() -> None:
    assert _await_end(iter([event("start"), event("die", exitCode="75")])) == (75, False)
    assert _await_end(iter([event("oom"), event("die", exitCode="137")])) == (137, True)


def test_the_engine_may_tell_of_the_memory_after_the_end() -> None:
    late = [event("die", exitCode="137"), event("oom"), event("destroy"), event("start")]
    assert _await_end(iter(late)) == (137, True)


def test_an_engine_that_goes_away_is_no_end() -> None:
    with pytest.raises(RetryableError, match="has gone while the stage ran"):
        _await_end(iter([event("start")]))


@pytest.mark.parametrize(("hears", "number"), [(True, signal.SIGTERM), (False, signal.SIGKILL)])
def test_without_an_engine_the_kernel_stops_a_stage(hears: bool, number: int) -> None:
    deaf = "" if hears else "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    text = f"import signal, time; {deaf}print('begun', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) as stage:
        assert stage.stdout is not None and stage.stdout.readline() == b"begun\n"
        stop_without_engine(stage.pid, grace_seconds=60 if hears else 0.2)
        assert stage.wait(timeout=60) == -number


class FakeEngine:
    """Knows one image, or none."""

    def __init__(self, image: Image | None) -> None:
        self.found = image

    def image(self, name: str) -> Image | None:
        return self.found


def backend(image: Image | None, has_gpus: bool = False) -> DockerBackend:
    made = DockerBackend()
    made.__dict__ |= {"_engine": FakeEngine(image), "_facts": EngineFacts(2, has_gpus)}
    return made


def check(made: DockerBackend, spec: Any = SPEC) -> None:
    asyncio.run(made.check(lambda: [spec]))


def test_a_missing_image_names_the_command_that_builds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no image glassworks/dpo:dev") as caught:
        check(backend(None))
    assert caught.value.hint == "glassworks images build dpo"
    monkeypatch.setenv("GLASSWORKS_IMAGES", "registry.example:5000/gw/{target}:1")
    with pytest.raises(UserError) as caught:
        check(backend(None))
    assert caught.value.hint == "docker pull registry.example:5000/gw/dpo:1"


def test_an_image_with_other_code_is_refused() -> None:
    with pytest.raises(UserError, match="holds other code or packages than this checkout"):
        check(backend(Image("sha256:1", 1, (), {CODE_LABEL: "0" * 24})))
    check(backend(Image("sha256:1", 1, (), {CODE_LABEL: code_digest("dpo")})))


def test_all_images_that_are_lacking_are_named_at_once() -> None:
    specs = [spec for spec in STAGES if spec.name in ("tokenizer", "sft", "dpo")]
    of_dpo = Image("sha256:1", 1, (), {CODE_LABEL: code_digest("dpo")})
    with pytest.raises(UserError) as caught:
        asyncio.run(backend(of_dpo).check(lambda: specs))
    told = "images named like glassworks/tokenizer:dev are of other code or packages than this checkout"
    assert caught.value.message == f"{told}: tokenizer, sft"
    assert caught.value.hint == "glassworks images build tokenizer sft"
    with pytest.raises(UserError, match="are missing: tokenizer, sft, dpo") as caught:
        asyncio.run(backend(None).check(lambda: specs))
    assert caught.value.hint == "glassworks images build tokenizer sft dpo"


def test_a_gpu_that_is_required_must_be_there_before_anything_runs() -> None:
    from dataclasses import replace

    spec = replace(SPEC, gpu="required")
    image = Image("sha256:1", 1, (), {CODE_LABEL: code_digest("dpo")})
    with pytest.raises(UserError, match="dpo needs a GPU") as caught:
        check(backend(image), spec)
    assert "nvidia-ctk" in caught.value.hint
    check(backend(image, has_gpus=True), spec)


def test_images_are_named_by_a_pattern_or_by_a_file_of_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLASSWORKS_IMAGES", raising=False)
    assert image_name("dpo") == "glassworks/dpo:dev"
    file = tmp_path / "digests.json"
    file.write_text('{"dpo": "localhost:5000/gw/dpo@sha256:12"}')
    monkeypatch.setenv("GLASSWORKS_IMAGES", str(file))
    assert image_name("dpo") == "localhost:5000/gw/dpo@sha256:12"
    with pytest.raises(UserError, match="names no image of sft"):
        image_name("sft")


def test_limits_are_read_like_settings() -> None:
    limits = parse_limits(["dpo.memory_gib=8", "dpo.num_processes=64"])
    assert limits == {"dpo": Limits(memory_gib=8.0, num_processes=64)}
    with pytest.raises(UserError, match="did you mean 'memory_gib'"):
        parse_limits(["dpo.memory=8"])
    with pytest.raises(UserError, match="expected a number"):
        parse_limits(["dpo.memory_gib=much"])
    with pytest.raises(UserError, match="for containers"):
        backend_named("process", ["dpo.memory_gib=8"])


def test_a_blocking_call_does_not_keep_the_program_from_ending() -> None:
    forever = threading.Event()

    async def start_and_leave() -> None:
        in_thread(forever.wait)
        await asyncio.sleep(0)

    asyncio.run(start_and_leave())  # would hang in an executor's shutdown
    forever.set()


def test_what_must_be_finished_is_waited_for_however_often_it_is_cancelled() -> None:
    done = []

    async def clean_up() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await undisturbed(in_thread(lambda: (time.sleep(0.3), done.append("yes"))))

    async def cancel_thrice() -> None:
        task = asyncio.create_task(clean_up())
        for _ in range(3):
            await asyncio.sleep(0.05)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_thrice())
    assert done == ["yes"]


def frame(stream: int, data: bytes) -> bytes:
    return struct.pack(">BxxxL", stream, len(data)) + data


def test_lines_are_put_together_from_pieces_and_stderr_is_kept_apart() -> None:
    import socket

    from flows.container_run import _read

    ours, theirs = socket.socketpair()
    lines: list[bytes] = []
    theirs.sendall(frame(1, b'{"event": "l') + frame(2, b"warning") + frame(1, b'og"}\nend'))
    theirs.close()
    assert _read(ours, lines.append) == "warning"
    assert lines == [b'{"event": "log"}', b"end"]


def test_a_form_that_asks_for_no_backend_gets_that_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLASSWORKS_BACKEND", raising=False)
    assert backend_of_worker("default") == "process"
    monkeypatch.setenv("GLASSWORKS_BACKEND", "docker")
    assert backend_of_worker("default") == "docker"
    assert backend_of_worker("process") == "process"
    monkeypatch.setenv("GLASSWORKS_BACKEND", "dokcer")
    with pytest.raises(UserError, match="GLASSWORKS_BACKEND=dokcer is no backend") as caught:
        backend_of_worker("default")
    assert "process, docker" in caught.value.hint
