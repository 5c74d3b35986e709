"""What a stage declares about itself, without importing any of the code that does the work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from data_contracts import Contract
from stages.runtime.errors import UserError, did_you_mean

GpuPolicy = Literal["none", "preferred", "required"]


class StageConfig(BaseModel):
    """Base of every stage's configuration: frozen, nothing unknown, a docstring under each field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )

    def refuse_without_effect(self, names: Iterable[str], why: str) -> None:
        """For validators: a setting that would not count is a mistake.

        Raises ValueError for the first of `names` that is not at its default: it "has no effect" and `why`.
        """
        for name in names:
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(f"{name} = {value!r} has no effect {why}")


@dataclass(frozen=True)
class Read:
    """One input: `part` of the artifact that `stage` writes, under `contract`."""

    stage: str
    part: str
    contract: Contract


@dataclass(frozen=True)
class Limits:
    """The most that a stage may take where it runs in a container. Nothing here changes what it makes."""

    memory_gib: float = 4.0
    """GiB of memory, swap included; the laptop preset stays below half of the default."""
    num_cpus: float = 0.0
    """Share of the processors, such as 1.5; 0 for all. The number of threads does not follow from it."""
    num_processes: int = 512
    """Processes and threads together."""
    scratch_gib: float = 1.0
    """GiB of /tmp, which is memory too."""


@dataclass(frozen=True)
class Outside:
    """What a stage reads from outside the store, for who has to bring it to where the stage runs."""

    same_place: tuple[Path, ...] = ()
    """Files and folders that must be where the configuration says."""
    moved: Mapping[str, Path] = field(default_factory=dict)
    """Place where the stage runs -> file or folder here."""
    documents: Mapping[str, str] = field(default_factory=dict)
    """Place where the stage runs -> text of a file to make."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the stage needs to find them."""


@dataclass(frozen=True)
class StageSpec:
    """The declaration of a stage."""

    name: str
    version: int
    """Bumped by the author when outputs change although no code of this repository did."""
    config: type[StageConfig]
    writes: Mapping[str, Contract]
    """Part name -> contract; a part is one folder of the artifact."""
    reads: Mapping[str, Read] = field(default_factory=dict)
    image: str = "data"
    """Image family: data, torch or vector."""
    gpu: GpuPolicy = "none"
    summary: str = ""
    external_inputs: Callable[[Any], Mapping[str, str]] | None = None
    """Config -> {name: sha256} of files that are read from outside the store."""
    outside: Callable[[Any], Outside] | None = None
    """Config -> where those files are."""
    limits: Limits = Limits()
    not_in_key: frozenset[str] = frozenset()
    """Config fields that the fingerprint leaves out: `external_inputs` counts their content, or they say only
    who does the work."""

    def parse_config(self, raw: Mapping[str, Any]) -> StageConfig:
        """Validate `raw`. Raises UserError that names the field, and the nearest known one for a typo."""
        try:
            return self.config.model_validate(dict(raw))
        except ValidationError as error:
            raise self._explain(error) from None

    def _explain(self, error: ValidationError) -> UserError:
        found = error.errors(include_url=False)
        first = found[0]
        where = _place(first["loc"])
        known = list(self.config.model_fields)
        if first["type"] == "extra_forbidden":
            message = f"[{self.name}] has no setting {where!r}{did_you_mean(where, known)}"
            return UserError(message, hint=f"settings of {self.name}: {', '.join(known)}")
        if not where:  # about several settings together: the whole table would say little
            message = f"[{self.name}] {first['msg'].removeprefix('Value error, ')}"
            return UserError(message, hint=f"see stages/{self.name}/spec.py")
        # A setting that may be one of several kinds has a problem with each of them.
        told = [each["msg"].removeprefix("Value error, ") for each in found if _place(each["loc"]) == where]
        problems = dict.fromkeys(told)
        message = f"[{self.name}] {where} = {first.get('input')!r}: {'; or '.join(problems)}"
        documented = self.config.model_fields.get(str(first["loc"][0]))
        about = f"{where}: {documented.description}" if documented and documented.description else ""
        return UserError(message, hint=about or f"see stages/{self.name}/spec.py")

    def key_config(self, config: StageConfig) -> dict[str, Any]:
        """The part of the configuration that the fingerprint covers, as plain JSON values."""
        return config.model_dump(mode="json", exclude=set(self.not_in_key))


def _place(parts: Sequence[int | str]) -> str:
    """The setting's name, without pydantic's words for the kinds of value that it may have."""
    return ".".join(str(part) for part in parts if not str(part).startswith(("constrained-", "literal[")))
