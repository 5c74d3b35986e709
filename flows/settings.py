"""What a build is told: a preset, then the user's own changes, each checked before anything runs."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

from flows.report.record import RunRecord
from stages.catalog import STAGES
from stages.corpus_prep.reading.source_entries import as_text, at_full_path
from stages.runtime.errors import UserError, did_you_mean
from stages.runtime.fingerprint import REPOSITORY
from stages.runtime.spec import StageConfig

PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "laptop"


@dataclass(frozen=True)
class BuildSettings:
    """One configuration per stage, and what was asked of the build as a whole."""

    preset: str
    configs: Mapping[str, StageConfig]
    force: frozenset[str] = field(default_factory=frozenset)
    trust_code: bool = False


#: Settings of corpus_prep that name files: relative to the user's folder, or to that of the preset.
PATH_SETTINGS = frozenset(
    {"sources", "benchmark_sources", "earlier_corpora", "word_lists", "url_lists", "good_text", "bad_text"}
)
#: The same for settings of other stages that name one file or folder each; "" is none.
ONE_PATH = {
    "tokenizer": frozenset({"extend", "import_from"}),
    "pretrain": frozenset({"continue_from", "shape_from"}),
    "sft": frozenset({"teacher", "adapter_from"}),
}


def preset_names() -> list[str]:
    """Names of the presets that ship with Glassworks."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_preset(name: str) -> dict[str, dict[str, Any]]:
    """Stage -> settings. `name` is one of ours or the path of a TOML file. Raises UserError otherwise."""
    path = PRESETS / f"{name}.toml"
    if not path.exists():
        path = Path(name)
    if not path.is_file():
        guess = did_you_mean(name, preset_names())
        raise UserError(f"there is no preset {name!r}{guess}", hint=f"presets: {', '.join(preset_names())}")
    try:
        return _with_full_paths(tomllib.loads(path.read_text(encoding="utf-8")), path)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is no TOML: {error}", hint="mend the file") from None


def _with_full_paths(raw: dict[str, dict[str, Any]], preset: Path) -> dict[str, dict[str, Any]]:
    """Paths in a preset are relative to the repository, or to the user's own preset file."""
    base = REPOSITORY if preset.parent == PRESETS else preset.parent
    corpus = raw.get("corpus_prep", {})
    for name in corpus.keys() & PATH_SETTINGS:
        corpus[name] = _at_full_paths(name, corpus[name], base)
    for stage, names in ONE_PATH.items():
        for name in raw.get(stage, {}).keys() & names:
            raw[stage][name] = _at_one_full_path(raw[stage][name], base)
    return raw


def _at_full_paths(name: str, entries: Any, base: Path) -> Any:
    """What is no list is left to the validation of the setting."""
    if not isinstance(entries, list | tuple):
        return entries
    return tuple(at_full_path(as_text(name, entry), base) for entry in entries)


def _at_one_full_path(entry: Any, base: Path) -> Any:
    return at_full_path(entry, base) if isinstance(entry, str) and entry else entry


def build_settings(
    preset: str,
    *,
    sources: Iterable[str] = (),
    benchmarks: Iterable[str] = (),
    changes: Iterable[str] = (),
    force: Iterable[str] = (),
    trust_code: bool = False,
) -> BuildSettings:
    """Preset, then `--source` and `--benchmark`, then `--set stage.field=value`; everything validated."""
    raw = load_preset(preset)
    for stage in [*raw, *force]:
        known_stage(stage)
    if paths := tuple(at_full_path(path, Path.cwd()) for path in sources):
        raw.setdefault("corpus_prep", {})["sources"] = paths
    if paths := tuple(at_full_path(path, Path.cwd()) for path in benchmarks):
        raw.setdefault("corpus_prep", {})["benchmark_sources"] = paths
    for change in changes:
        stage, name, value = parse_change(change)
        raw.setdefault(stage, {})[name] = value
    configs = {spec.name: spec.parse_config(raw.get(spec.name, {})) for spec in STAGES}
    return BuildSettings(preset, configs, frozenset(force), trust_code)


def known_stage(name: str) -> str:
    """`name`, or UserError with the nearest stage."""
    names = [spec.name for spec in STAGES]
    if name not in names:
        guess = did_you_mean(name, names)
        raise UserError(f"there is no stage {name!r}{guess}", hint=f"stages: {', '.join(names)}")
    return name


def parse_change(change: str) -> tuple[str, str, Any]:
    """`pretrain.depth=6` -> ("pretrain", "depth", 6). Values are Python or TOML literals, else text."""
    path, separator, text = change.partition("=")
    stage, dot, name = path.partition(".")
    if not separator or not dot:
        raise UserError(
            f"--set {change!r} is not STAGE.FIELD=VALUE", hint="for example --set pretrain.depth=6"
        )
    value = _literal(text)
    if isinstance(value, str) and _takes_many(known_stage(stage), name):
        value = (value,)
    if stage == "corpus_prep" and name in PATH_SETTINGS:
        value = _at_full_paths(name, value, Path.cwd())
    if name in ONE_PATH.get(stage, ()):
        value = _at_one_full_path(value, Path.cwd())
    return known_stage(stage), name, value


def _takes_many(stage: str, name: str) -> bool:
    """Whether the setting is a list, for which a single entry may stand alone."""
    [spec] = [spec for spec in STAGES if spec.name == stage]
    field_ = spec.config.model_fields.get(name)
    return field_ is not None and get_origin(field_.annotation) is tuple


def _literal(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def settings_of_run(record: RunRecord, changes: Iterable[str], force: Iterable[str]) -> BuildSettings:
    """The settings that a run had, with the user's changes on top."""
    raw: dict[str, dict[str, Any]] = {name: dict(config) for name, config in record.configs.items()}
    for change in changes:
        stage, name, value = parse_change(change)
        raw.setdefault(stage, {})[name] = value
    configs = {spec.name: spec.parse_config(raw.get(spec.name, {})) for spec in STAGES}
    return BuildSettings(record.preset, configs, frozenset(force))
