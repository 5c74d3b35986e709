"""`glassworks redecide` and `calibrate`: other filters and thresholds for a corpus, from its scores alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from data_contracts.tables import part_files
from flows.settings import parse_change
from stages.corpus_prep.calibration import CalibratedGroup, as_thresholds, calibrate_corpus
from stages.corpus_prep.filtering import Filters
from stages.corpus_prep.redeciding import SETTINGS, Changed, Decider, Redecision, Share, Tally, redecide
from stages.corpus_prep.spec import SPEC, CorpusPrepConfig
from stages.runtime.errors import UserError
from stages.runtime.store import Artifact

PART = "document_scores"

FEW_DOCUMENTS = 10
"""From so many on a quantile is more than the one or two oddest documents."""


def show_redecision(
    artifact: Artifact, changes: Sequence[str], console: Console, rows: int = 3, options: str = ""
) -> None:
    """Print what the rules drop now and would with the changes, and `rows` documents that change sides.

    changes: `corpus_prep.thresholds=...`; options: of the command to paste, such as `--store DIR`. Raises
    UserError for an artifact without scores, and for settings that cannot be decided by scores.
    """
    files = _score_files(artifact)
    old = _config_of(artifact)
    new = _changed_config(old, changes)
    found = redecide(files, Decider.of(old), Decider.of(new), rows)
    console.print(f"{_name(artifact)}: {_told(found.total)} were measured", highlight=False)
    for name in SETTINGS:
        before, after = getattr(old, name), getattr(new, name)
        arrow = f" -> {_listed(after)}" if before != after else ""
        if not arrow and before == type(old).model_fields[name].default and name not in SETTINGS[:3]:
            continue
        console.print(f"  {name}: {_listed(before)}{arrow}", highlight=False, markup=False, soft_wrap=True)
    console.print(_reasons_table(found.before, found.after))
    _tell_changes(found, console)
    if changes and (found.goes.documents or found.returns.documents):
        told = " ".join(f"--set {_quoted(change)}" for change in changes)
        console.print("\nDuplicates, the size limit and benchmarks are decided anew by a rerun:", style="dim")
        console.print(
            f"glassworks rerun corpus_prep {told}{options}", soft_wrap=True, markup=False, highlight=False
        )


def _score_files(artifact: Artifact) -> list[Path]:
    if PART not in artifact.manifest.parts:
        raise UserError(
            f"{_name(artifact)} keeps no scores of documents",
            hint="they are in corpus_prep since document_scores@1: glassworks rerun corpus_prep",
        )
    return part_files(artifact.part(PART))


def _name(artifact: Artifact) -> str:
    return f"{artifact.manifest.stage} {artifact.manifest.fingerprint}"


def _config_of(artifact: Artifact) -> CorpusPrepConfig:
    config = SPEC.parse_config(artifact.manifest.config)
    assert isinstance(config, CorpusPrepConfig)
    return config


def _changed_config(config: CorpusPrepConfig, changes: Sequence[str]) -> CorpusPrepConfig:
    raw = config.model_dump(mode="json")
    for change in changes:
        stage, name, value = parse_change(change)
        if stage != SPEC.name or name not in SETTINGS:
            allowed = ", ".join(f"{SPEC.name}.{setting}" for setting in SETTINGS)
            raise UserError(
                f"{stage}.{name} cannot be tried on scores, only {allowed}",
                hint=f"glassworks rerun {stage} --set {change}",
            )
        raw[name] = value
    changed = SPEC.parse_config(raw)
    assert isinstance(changed, CorpusPrepConfig)
    return changed


def _listed(value: Any) -> str:
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value)


def _quoted(change: str) -> str:
    return change if not set(change) & set(" \"'[]()") else "'" + change.replace("'", '"') + "'"


def _told(share: Share) -> str:
    return f"{share.documents:,} documents ({share.num_bytes / 1e6:,.1f} MB)"


def _reasons_table(before: Tally, after: Tally) -> Table:
    """What breaks each rule, whatever else it breaks; `alone` is what it would drop without any other."""
    table = _rule_table("broken rule", {*before.by_reason, *after.by_reason})
    for column in ("documents", "MB", "would be", "MB", "alone"):
        table.add_column(column, justify="right")
    names = {**after.by_reason, **before.by_reason}
    order = sorted(names, key=lambda name: (-_of(after, name).documents, -_of(before, name).documents, name))
    for name in order:
        alone = after.alone.get(name, Share()).documents
        table.add_row(name, *_cells(_of(before, name)), *_cells(_of(after, name)), f"{alone:,}")
    table.add_row("all together", *_cells(before.dropped), *_cells(after.dropped), "", style="bold")
    return table


def _rule_table(title: str, names: set[str]) -> Table:
    """A table whose first column, the names of rules, is never cut."""
    widest = max(map(len, names), default=0)
    return Table(Column(title, no_wrap=True, min_width=widest), box=None)


def _of(tally: Tally, reason: str) -> Share:
    return tally.by_reason.get(reason, Share())


def _cells(share: Share) -> tuple[str, str]:
    return f"{share.documents:,}", f"{share.num_bytes / 1e6:,.2f}"


def _tell_changes(found: Redecision, console: Console) -> None:
    if found.told_otherwise:
        console.print(
            f"warning: of {found.told_otherwise:,} documents the corpus itself says otherwise: "
            "the rules have changed since it was made",
            style="yellow",
        )
    from_corpus = f"; in the corpus are {_told(found.goes_from_corpus)} of them"
    told = from_corpus if found.goes.documents else ""
    console.print(f"\n{_told(found.goes)} would go{told}", highlight=False, soft_wrap=True)
    _print_examples(found.going, console)
    console.print(f"\n{_told(found.returns)} would pass that do not now", highlight=False, soft_wrap=True)
    _print_examples(found.returning, console)


def _print_examples(examples: Sequence[Changed], console: Console) -> None:
    for each in examples:
        title = each.title or each.doc_id
        console.print(
            Text.assemble("  ", (title, "bold"), "  ", (f"{each.source}  {each.place}", "dim")),
            soft_wrap=True,
        )
        console.print(Text.assemble("     ", (each.why, "yellow")), soft_wrap=True)


def show_calibration(
    artifact: Artifact,
    changes: Sequence[str],
    console: Console,
    quantile: float = 0.01,
    language: str = "",
    options: str = "",
) -> None:
    """Print for each rule the threshold at which it drops this share of the corpus, ready for `--set`.

    changes: filters to calibrate instead of those of the corpus. Raises UserError for an artifact without
    scores, for a language without documents, and for a quantile that is none.
    """
    if not 0 < quantile < 1:
        raise UserError(f"--quantile {quantile:g} is no share", hint="between 0 and 1, such as 0.01")
    files = _score_files(artifact)
    config = _changed_config(_config_of(artifact), changes)
    groups = calibrate_corpus(files, Filters(config.filters, config.thresholds), quantile, language)
    if not groups:
        raise UserError(
            f"{_name(artifact)} has no documents{f' of language {language!r}' if language else ''} that a "
            "filter judges",
            hint="glassworks show corpus_prep",
        )
    for group in groups:
        _print_group(group, quantile, console)
    _print_settings(as_thresholds(groups, config.thresholds), changes, console, options)


def _print_group(group: CalibratedGroup, quantile: float, console: Console) -> None:
    languages = ", ".join(f"{name} {count:,}" for name, count in group.languages.items())
    console.print(f"\n[bold]{_told(group.total)}[/bold]: {languages}", highlight=False)
    if group.total.documents * quantile < FEW_DOCUMENTS:
        told = f"{quantile:g} of so few documents says little: take more text, or a larger quantile"
        console.print(told, style="yellow", highlight=False)
    table = _rule_table("rule", {each.rule.name for each in group.rules})
    for column in ("drops", "documents", "MB", f"at {quantile:g}", "documents", "MB"):
        table.add_column(column, justify="right")
    for each in group.rules:
        at = f"{each.rule.comparison} {each.rule.threshold:.10g}"
        then = (
            f"{each.rule.comparison} {each.threshold:.10g}" if each.threshold != each.rule.threshold else "="
        )
        table.add_row(each.rule.name, at, *_cells(each.now), then, *_cells(each.then))
    table.add_row("all together", "", *_cells(group.now), "", *_cells(group.then), style="bold")
    console.print(table)


def _print_settings(
    thresholds: Sequence[str], changes: Sequence[str], console: Console, options: str
) -> None:
    others = [change for change in changes if not change.startswith(f"{SPEC.name}.thresholds")]
    told = " ".join(f"--set {_quoted(change)}" for change in [*others, _setting(thresholds)])
    console.print("\nto try them:", style="dim")
    console.print(f"glassworks redecide {told}{options}", soft_wrap=True, markup=False, highlight=False)
    console.print("\nin a preset, under [corpus_prep]:", style="dim", markup=False)
    console.print("thresholds = [", markup=False, highlight=False)
    for text in thresholds:
        console.print(f"    {json.dumps(text)},", markup=False, highlight=False)
    console.print("]", markup=False, highlight=False)


def _setting(thresholds: Sequence[str]) -> str:
    return f"{SPEC.name}.thresholds={json.dumps(list(thresholds))}"
