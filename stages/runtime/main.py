"""The one entry point of every stage: `python -m stages.X --config c.json --input role=DIR --output DIR`.

The same code runs in a shell, under the flows and in a container. It checks what comes in, runs the stage,
checks what goes out, and commits the artifact with one rename; or it commits nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_contracts.manifest import FileEntry, InputEntry, KeyParts, Manifest, PartEntry
from stages.runtime import store as stores
from stages.runtime.delivery import delivered
from stages.runtime.errors import (
    ContractError,
    GlassworksError,
    RetryableError,
    StopRequested,
    UserError,
    did_you_mean,
    disk_full,
    is_disk_full,
)
from stages.runtime.events import EVENTS_NAME, EventLog
from stages.runtime.fingerprint import fingerprint, key_parts
from stages.runtime.lease import hold_stdin_lease
from stages.runtime.lock import exclusive
from stages.runtime.provenance import Stopwatch
from stages.runtime.session import StageSession
from stages.runtime.spec import Read, StageConfig, StageSpec

RunFunction = Callable[[Any, Mapping[str, Path], Mapping[str, Path], StageSession], dict[str, float]]


@dataclass(frozen=True)
class Program:
    """One invocation of a stage: what to run, where, and whom to tell."""

    spec: StageSpec
    run: RunFunction
    options: argparse.Namespace
    output: Path
    work: Path
    session: StageSession
    log: EventLog
    stopwatch: Stopwatch


def main(spec: StageSpec, run: RunFunction, arguments: Sequence[str] | None = None) -> None:
    """Run the stage and end the process: 0 done, 2 the user, 3 a contract, 75 retry, 143 stopped."""
    stopwatch = Stopwatch()
    options = _parse_arguments(spec, arguments)
    output: Path = options.output.resolve()
    work: Path = (options.work or output.with_name(output.name + ".work")).resolve()
    try:
        log = EventLog(work / EVENTS_NAME, as_json=options.events == "json")
    except OSError as error:
        print(f"error: cannot write to {work}: {error}", file=sys.stderr)
        sys.exit(RetryableError.exit_code if is_disk_full(error) else UserError.exit_code)
    session = StageSession(spec.name, work, log)
    session.install_signal_handlers()
    if options.lease == "stdin":
        hold_stdin_lease()
    sys.exit(_guarded(Program(spec, run, options, output, work, session, log, stopwatch)))


def _guarded(program: Program) -> int:
    """Run everything that can fail; turn each error into an event, a message and an exit code."""
    name = program.spec.name
    try:
        _build(program)
        return 0
    except GlassworksError as error:
        return _report(program.log, error)
    except InterruptedError as error:
        return _report(program.log, StopRequested(str(error), hint="build again to go on"))
    except KeyboardInterrupt:
        return _report(program.log, StopRequested(f"{name} was interrupted", hint="build again to go on"))
    except Exception as error:
        if is_disk_full(error):
            return _report(program.log, disk_full(name, program.work))
        traceback.print_exc()
        message = f"{name} failed with {type(error).__name__}: {error}"
        hint = f"the traceback is above; {program.work} is kept"
        return _report(program.log, GlassworksError(message, hint=hint))


def _report(log: EventLog, error: GlassworksError) -> int:
    with contextlib.suppress(
        OSError, ValueError
    ):  # the disk may be full: the terminal still gets the message
        log.emit("error", message=error.message, hint=error.hint, exit_code=error.exit_code)
    print(f"error: {error}", file=sys.stderr, flush=True)
    return error.exit_code


def _parse_arguments(spec: StageSpec, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m stages.{spec.name}", description=spec.summary)
    parser.add_argument("--config", type=Path, help="JSON file with the settings (default: all defaults)")
    parser.add_argument("--input", action="append", default=[], metavar="ROLE=DIR", help="one per input")
    parser.add_argument(
        "--output", type=Path, required=True, help="the artifact's folder, made by one rename"
    )
    parser.add_argument("--work", type=Path, help="folder for checkpoints (default: OUTPUT.work)")
    parser.add_argument("--expect", help="fingerprint that the caller planned with")
    parser.add_argument("--force", action="store_true", help="build it again although it is there and whole")
    parser.add_argument("--events", choices=("text", "json"), default="text", help="how to print events")
    parser.add_argument("--lease", choices=("none", "stdin"), default="none", help="stop when stdin ends")
    return parser.parse_args(arguments)


def _build(program: Program) -> None:
    """Check everything that comes in, then build under the artifact's lock."""
    spec = program.spec
    config = spec.parse_config(_read_config(program.options.config))
    inputs = _parse_inputs(spec, program.options.input)
    entries = {role: _check_input(spec.reads[role], role, folder) for role, folder in inputs.items()}
    lock = program.work.with_name(program.work.name + ".lock")

    def on_wait(message: str) -> None:
        program.log.tell("log", level="warning", message=message)

    with exclusive(lock, on_wait, program.session.should_stop):
        program.log.reopen()
        key = key_parts(spec, config, {role: entry.digest for role, entry in entries.items()})
        _check_expectation(program, fingerprint(key))
        anew = program.options.force
        if not anew and (_is_built(program.output, fingerprint(key)) or _was_delivered(program, key)):
            program.log.emit("finished", fingerprint=fingerprint(key), already_built=True)
        else:
            _run_and_commit(program, config, inputs, entries, key)
        _clear(program.work, program.output)


def _clear(work: Path, output: Path) -> None:
    """Remove the work folder, or everything in it but the artifact where that was delivered into it."""
    if output.parent != work:
        shutil.rmtree(work, ignore_errors=True)
        return
    for path in work.iterdir():
        if path == output:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _check_expectation(program: Program, found: str) -> None:
    expected = program.options.expect
    if expected and expected != found:
        raise RetryableError(
            f"{program.spec.name} was planned as {expected} but is {found} now: "
            "code, a package or an input has changed",
            hint="run the same command again",
        )


def _is_built(output: Path, expected: str) -> bool:
    manifest = stores.read_manifest(output)
    return manifest is not None and manifest.fingerprint == expected and not stores.damage(output, manifest)


def _was_delivered(program: Program, key: KeyParts) -> bool:
    """Take what a stage in a container has made, where nobody was left to take it."""
    found = delivered(program.work, fingerprint(key))
    if found is None or found.folder == program.output:
        return False
    stores.move_into_place(found.folder, program.output, aside=program.work)
    return True


def _run_and_commit(
    program: Program,
    config: StageConfig,
    inputs: Mapping[str, Path],
    entries: Mapping[str, InputEntry],
    key: KeyParts,
) -> None:
    spec, log, stopwatch = program.spec, program.log, program.stopwatch
    stopwatch.resumed = any(program.work.glob("checkpoints/*"))
    if not stopwatch.resumed:
        log.restart()
    log.emit("started", stage=spec.name, fingerprint=fingerprint(key), resumed=stopwatch.resumed)
    staged = program.work / "out"
    shutil.rmtree(staged, ignore_errors=True)
    outputs = {part: staged / part for part in spec.writes}
    for folder in outputs.values():
        folder.mkdir(parents=True)
    metrics = program.run(config, inputs, outputs, program.session)
    _check_outputs(spec, outputs)
    log.emit("finished", fingerprint=fingerprint(key), metrics=metrics)
    shutil.copyfile(log.path, staged / EVENTS_NAME)
    files = stores.list_files(staged)
    manifest = Manifest(
        stage=spec.name,
        fingerprint=fingerprint(key),
        key=key,
        config=config.model_dump(mode="json"),
        inputs=dict(entries),
        parts=_part_entries(spec, staged, files),
        files=tuple(files),
        metrics={name: float(value) for name, value in metrics.items()},
        provenance=stopwatch.finish(),
    )
    stores.commit(staged, program.output, manifest)


def _part_entries(spec: StageSpec, staged: Path, files: Sequence[FileEntry]) -> dict[str, PartEntry]:
    return {
        name: PartEntry(
            contract=contract.identity,
            digest=stores.part_digest(files, name),
            num_rows=contract.count_rows(staged / name),
        )
        for name, contract in spec.writes.items()
    }


def _read_config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"the configuration {path} does not exist", hint="pass --config FILE.json") from None
    except ValueError as error:
        raise UserError(f"the configuration {path} is no JSON: {error}", hint="mend the file") from None
    if not isinstance(raw, dict):
        raise UserError(f"the configuration {path} holds {type(raw).__name__}, expected an object {{...}}")
    return raw


def _parse_inputs(spec: StageSpec, pairs: Sequence[str]) -> dict[str, Path]:
    inputs: dict[str, Path] = {}
    for pair in pairs:
        role, separator, folder = pair.partition("=")
        if not separator or role not in spec.reads:
            known = ", ".join(spec.reads) or "none"
            raise UserError(
                f"--input {pair!r}: {spec.name} has no input {role!r}{did_you_mean(role, spec.reads)}",
                hint=f"inputs of {spec.name}: {known}; write --input ROLE=DIR",
            )
        inputs[role] = Path(folder).resolve()
    missing = [f"{role} ({spec.reads[role].contract.identity})" for role in spec.reads if role not in inputs]
    if missing:
        raise UserError(
            f"{spec.name} lacks its input {', '.join(missing)}", hint="pass --input ROLE=DIR for each"
        )
    return {role: inputs[role] for role in spec.reads}


def _check_input(read: Read, role: str, folder: Path) -> InputEntry:
    """Verify one input: it is there, under the contract and version that we read, and byte for byte whole."""
    rebuild = f"rebuild it: glassworks rerun {read.stage}"
    if not folder.is_dir():
        raise UserError(f"input {role}: the folder {folder} does not exist", hint=rebuild)
    manifest = stores.read_manifest(folder.parent)
    if manifest is None or folder.name not in manifest.parts:
        return _check_outside_input(read, role, folder)
    part = manifest.parts[folder.name]
    if part.contract != read.contract.identity:
        raise ContractError(
            f"input {role}: {folder} was written as {part.contract}, this code reads "
            f"{read.contract.identity}",
            hint=rebuild,
        )
    if problems := stores.damage(folder.parent, manifest, folder.name):
        raise ContractError(f"input {role}: {folder.parent}: {'; '.join(problems[:3])}", hint=rebuild)
    return InputEntry(
        stage=manifest.stage,
        fingerprint=manifest.fingerprint,
        part=folder.name,
        contract=part.contract,
        digest=part.digest,
    )


def _check_outside_input(read: Read, role: str, folder: Path) -> InputEntry:
    """A folder that no stage of ours wrote: allowed if it keeps the contract; it counts by its content."""
    if violations := read.contract.check(folder):
        raise ContractError(
            f"input {role}: {folder} does not keep {read.contract.identity}: {violations[0]}",
            hint=f"expected: {read.contract.summary}",
        )
    entries = [f.model_copy(update={"path": f"part/{f.path}"}) for f in stores.list_files(folder)]
    digest = stores.part_digest(entries, "part")
    return InputEntry(
        stage="(outside)", fingerprint="", part=folder.name, contract=read.contract.identity, digest=digest
    )


def _check_outputs(spec: StageSpec, outputs: Mapping[str, Path]) -> None:
    for part, contract in spec.writes.items():
        if violations := contract.check(outputs[part]):
            listed = "\n  ".join(str(violation) for violation in violations[:5])
            raise ContractError(
                f"{spec.name} broke {contract.identity} in its part {part!r}:\n  {listed}",
                hint=f"nothing was committed; the output is kept in {outputs[part]}",
            )
