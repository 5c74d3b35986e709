"""Finding runs and artifacts by the names that people use: a run id, its beginning, `latest`, a stage."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from data_contracts.manifest import Manifest
from flows.report.record import RunRecord
from flows.stores import at_hand, described
from stages.catalog import STAGES
from stages.runtime.errors import UserError, did_you_mean
from stages.runtime.store import Artifact, Store, read_manifest


def run_ids(store: Store) -> list[str]:
    """All recorded runs, oldest first."""
    return sorted(path.stem for path in (store.root / "runs").glob("*.json"))


def read_record(store: Store, name: str) -> RunRecord:
    """The run with this id, this unique beginning of an id, this ref, or `latest`."""
    if name == "latest":
        return latest_record(store)
    ref = store.root / "refs" / name
    wanted = ref.read_text(encoding="utf-8").strip() if ref.is_file() else name
    matches = [run_id for run_id in run_ids(store) if run_id.startswith(wanted)]
    if len(matches) != 1:
        known = run_ids(store)
        found = "no run" if not matches else f"{len(matches)} runs"
        raise UserError(
            f"{found} {name!r} in {store.root}{did_you_mean(name, known)}",
            hint=f"newest runs: {', '.join(known[-5:]) or 'none yet (glassworks build)'}",
        )
    return _parse(store.root / "runs" / f"{matches[0]}.json")


def latest_record(store: Store) -> RunRecord:
    """The newest run. Raises UserError where there is none."""
    known = run_ids(store)
    if not known:
        raise UserError(f"{store.root} holds no run yet", hint="glassworks build")
    return _parse(store.root / "runs" / f"{known[-1]}.json")


def newest_with(store: Store, *stages: str) -> RunRecord:
    """The newest run that has artifacts of all these stages; if none has, the newest run."""
    for run_id in reversed(run_ids(store)):
        record = _parse(store.root / "runs" / f"{run_id}.json")
        if all(_made(store, record, stage) for stage in stages):
            return record
    return latest_record(store)


def earlier_run(store: Store, name: str | None, rerun: Collection[str]) -> RunRecord:
    """The run whose inputs and settings a rerun of these stages takes.

    The one of that name; else the newest that has all that they read from others and was not cancelled: what
    somebody tried and gave up is no good default. Raises UserError where there is no run.
    """
    if name:
        return read_record(store, name)
    needed = sorted(needed_by(rerun))
    for run_id in reversed(run_ids(store)):
        record = _parse(store.root / "runs" / f"{run_id}.json")
        if record.status != "stopped" and all(_made(store, record, stage) for stage in needed):
            return record
    return newest_with(store, *needed)


def needed_by(stages: Collection[str]) -> set[str]:
    """The stages that these read from, themselves left out."""
    reads = {read.stage for spec in STAGES if spec.name in stages for read in spec.reads.values()}
    return reads - set(stages)


def _made(store: Store, record: RunRecord, stage: str) -> Manifest | None:
    for done in record.stages:
        if done.name == stage and done.fingerprint and done.outcome in ("hit", "ran", "trusted"):
            return read_manifest(described(store, stage, done.fingerprint))
    return None


def _parse(path: Path) -> RunRecord:
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        message = f"{path} is no run record: {error.errors()[0]['msg']}"
        raise UserError(message, hint="remove it, or pick another run") from None


def artifact_of(store: Store, record: RunRecord, stage: str) -> Artifact:
    """The artifact that a run used for a stage. Raises UserError if it has none or it is gone."""
    manifest = _made(store, record, stage)
    if manifest is None:
        raise UserError(
            f"run {record.run_id} has no artifact of {stage}",
            hint=f"make it: glassworks build --until {stage}",
        )
    return at_hand(store, Artifact(store.artifact_dir(stage, manifest.fingerprint), manifest))


def _stage_called(word: str, stages: list[str]) -> str:
    """`corpus` for corpus_prep: the first word of a stage's name, where no other stage begins with it."""
    meant = [stage for stage in stages if stage.split("_")[0] == word]
    return meant[0] if word not in stages and len(meant) == 1 else word


def find_artifact(store: Store, name: str) -> Artifact:
    """An artifact by stage (of the newest run that has it), `stage@run`, fingerprint, or folder."""
    folder = Path(name)
    if manifest := read_manifest(folder):
        return Artifact(folder.resolve(), manifest)
    stage, _, run = name.partition("@")
    stages = [spec.name for spec in STAGES]
    stage = _stage_called(stage, stages)
    if stage in stages:
        return artifact_of(store, read_record(store, run) if run else newest_with(store, stage), stage)
    for candidate in stages:
        for artifact in store.artifacts(candidate):
            if artifact.manifest.fingerprint.startswith(name) and len(name) >= 6:
                return at_hand(store, artifact)
    raise UserError(
        f"there is no artifact {name!r}{did_you_mean(name, stages)}",
        hint="name a stage, STAGE@RUN, a fingerprint, or an artifact's folder",
    )
