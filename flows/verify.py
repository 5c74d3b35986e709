"""`glassworks verify`: does every artifact of a run hold what its manifest and its contracts promise?"""

from __future__ import annotations

from collections.abc import Iterator

from flows.records import artifact_of
from flows.report.record import RunRecord
from stages.catalog import STAGES
from stages.runtime.errors import ContractError
from stages.runtime.spec import StageSpec
from stages.runtime.store import Artifact, Store, damage


def verify_run(store: Store, record: RunRecord) -> Iterator[str]:
    """One line per stage of the run.

    Raises UserError where a stage has no artifact, and at the end ContractError if any of them is broken.
    """
    broken = []
    for spec in STAGES:
        artifact = artifact_of(store, record, spec.name)
        problems = violations(spec, artifact)
        about = f"{len(artifact.manifest.files)} files, {', '.join(c.identity for c in spec.writes.values())}"
        yield f"{spec.name:<15} {'BROKEN' if problems else 'whole':<7} {'; '.join(problems[:3]) or about}"
        broken += [spec.name] * bool(problems)
    if broken:
        message = f"run {record.run_id}: {', '.join(broken)} {'is' if len(broken) == 1 else 'are'} broken"
        raise ContractError(message, hint="glassworks build makes them again")


def violations(spec: StageSpec, artifact: Artifact) -> list[str]:
    """What is wrong with an artifact: its bytes first, and if those are whole, its contracts."""
    if wrong := damage(artifact.folder, artifact.manifest):
        return [str(problem) for problem in wrong]
    checked = ((part, contract.check(artifact.part(part))) for part, contract in spec.writes.items())
    return [f"{part}: {problem}" for part, problems in checked for problem in problems]
