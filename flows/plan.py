"""The dry run: which stages are there already, which must run, and why, without running anything.

A stage's fingerprint needs the content of its inputs. Where an input is yet to be made, the plan says so;
that stage may still be a hit when the input comes out with the same bytes. Where an artifact is only damaged,
its manifest tells what will come out again, so what follows it is planned as the hit that it will be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from data_contracts.manifest import KeyParts, Manifest
from flows.settings import BuildSettings, known_stage
from flows.stores import described
from stages.catalog import STAGES
from stages.pretrain.spec import PretrainConfig
from stages.runtime.errors import UserError
from stages.runtime.fingerprint import explain_difference, fingerprint, key_parts
from stages.runtime.spec import StageSpec
from stages.runtime.store import Artifact, Store, read_manifest

Outcome = Literal["HIT", "RUN", "TRUST"]
Packages = Callable[[StageSpec], Mapping[str, str]]
"""What a stage will find installed where it runs: `packages` of a backend."""


@dataclass(frozen=True)
class PlannedStage:
    """What the plan says about one stage."""

    spec: StageSpec
    outcome: Outcome
    reasons: tuple[str, ...]
    key: KeyParts | None
    artifact: Artifact | None
    estimated_seconds: float | None
    """How long the youngest artifact of this stage took; None without history."""
    expected: Manifest | None = None
    """What is there, or was before it was damaged: stages are reproducible, so it tells what will come."""

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.spec.name


def plan_stage(
    spec: StageSpec,
    settings: BuildSettings,
    inputs: Mapping[str, Manifest | None],
    store: Store,
    packages: Packages,
) -> PlannedStage:
    """Plan one stage whose inputs are described by `inputs` (None: to be made, and nobody knows how)."""
    estimate = last_seconds(store, spec.name)
    waiting = sorted({read.stage for read in spec.reads.values() if inputs[read.stage] is None})
    if waiting:
        reasons = (
            *_own_changes(spec, settings, store, packages),
            f"input from {', '.join(waiting)}, to be made first",
        )
        return PlannedStage(spec, "RUN", reasons, None, None, estimate)
    digests = {role: _digest(inputs[r.stage], r.part) for role, r in spec.reads.items()}
    key = key_parts(spec, settings.configs[spec.name], digests, packages=packages(spec))
    if spec.name in settings.force:
        return PlannedStage(spec, "RUN", ("forced",), key, None, estimate)
    if artifact := store.find(spec.name, fingerprint(key)):
        return PlannedStage(spec, "HIT", (), key, artifact, 0.0, artifact.manifest)
    reasons = tuple(store.why_not(key))
    if settings.trust_code and (trusted := store.find_trusting_code(key)):
        return PlannedStage(spec, "TRUST", reasons, key, trusted, 0.0, trusted.manifest)
    damaged = read_manifest(described(store, spec.name, fingerprint(key)))
    return PlannedStage(spec, "RUN", reasons, key, None, estimate, damaged)


def plan_build(
    settings: BuildSettings, store: Store, packages: Packages, specs: Iterable[StageSpec] = STAGES
) -> list[PlannedStage]:
    """Plan all stages in order."""
    expected: dict[str, Manifest | None] = {}
    planned = []
    for spec in specs:
        stage = plan_stage(spec, settings, expected, store, packages)
        expected[spec.name] = stage.expected
        planned.append(stage)
    return planned


def asks_for_experts(settings: BuildSettings) -> bool:
    """Whether the base model will be a mixture of experts."""
    pretrain = settings.configs.get("pretrain")
    return isinstance(pretrain, PretrainConfig) and pretrain.has_experts


def refuse_in_vain(planned: Iterable[PlannedStage], settings: BuildSettings) -> None:
    """Raises UserError where a stage is bound to refuse what an earlier one will have worked on for hours."""
    will_run = {stage.name for stage in planned if stage.outcome == "RUN"}
    if asks_for_experts(settings) and "quantize" in will_run:
        raise UserError(
            "[pretrain] asks for experts, and the stage quantize cannot take a model with experts",
            hint="add --until dpo, or leave num_experts (or architecture) out of [pretrain]",
        )


def upstream(stage: str, specs: Iterable[StageSpec] = STAGES) -> set[str]:
    """Every stage that `stage` reads from, directly or not."""
    needed = {stage}
    for spec in reversed(list(specs)):
        if spec.name in needed:
            needed |= {read.stage for read in spec.reads.values()}
    return needed - {stage}


def downstream(stage: str, specs: Iterable[StageSpec] = STAGES) -> set[str]:
    """Every stage that reads, directly or not, what `stage` writes."""
    found = {stage}
    for spec in specs:
        if any(read.stage in found for read in spec.reads.values()):
            found.add(spec.name)
    return found - {stage}


def rerun_set(stages: Iterable[str], with_downstream: bool) -> set[str]:
    """What a rerun of `stages` runs. Raises UserError for a stage that does not exist."""
    named = {known_stage(stage) for stage in stages}
    return named | {later for stage in named for later in downstream(stage)} if with_downstream else named


def _digest(manifest: Manifest | None, part: str) -> str:
    assert manifest is not None
    return manifest.parts[part].digest


def last_seconds(store: Store, stage: str) -> float | None:
    """How long the stage's youngest artifact took; None without history."""
    artifacts = list(store.artifacts(stage))
    return artifacts[-1].manifest.provenance.seconds if artifacts else None


def _own_changes(
    spec: StageSpec, settings: BuildSettings, store: Store, packages: Packages
) -> tuple[str, ...]:
    """What changed about the stage itself, when its inputs are not known yet."""
    own = key_parts(spec, settings.configs[spec.name], {}, packages=packages(spec))
    near = store.nearest(own)
    if near is None:
        return ("never built in this store",)
    roles = set(spec.reads)
    old = near.manifest.key
    kept = {name: digest for name, digest in old.inputs.items() if name not in roles}
    return tuple(explain_difference(old.model_copy(update={"inputs": kept}), own))
