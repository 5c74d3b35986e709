"""Thresholds from the user's own corpus: for each rule the one at which it drops a given share of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.corpus_prep.filtering import Filters, groups_of
from stages.corpus_prep.measuring.edited_lines import LEFT_COLUMNS, judges_the_edited, with_left
from stages.corpus_prep.measuring.judging import calibrate, failing
from stages.corpus_prep.measuring.rules import DERIVED, Rule, parse_threshold
from stages.corpus_prep.redeciding import Share, switches_of

DIGITS = 4


@dataclass(frozen=True)
class CalibratedRule:
    """A rule with its threshold as it is, and the one for the quantile; what it drops with each."""

    rule: Rule
    threshold: float
    now: Share
    then: Share


@dataclass(frozen=True)
class CalibratedGroup:
    """Documents that the same rules judge. languages: how many documents are of each."""

    languages: dict[str, int]
    total: Share
    rules: tuple[CalibratedRule, ...]
    now: Share
    """What the rules drop together."""
    then: Share


def calibrate_corpus(
    files: Sequence[Path], filters: Filters, quantile: float = 0.01, language: str = ""
) -> list[CalibratedGroup]:
    """Calibrate on the `document_scores` of a corpus, largest group first; `language`: on its documents only.

    A threshold is rounded to four digits, to the side where it drops less. Rules without a quantile worth
    naming (see `judging.calibrate`) keep theirs. Memory is 30 bytes a document.

    Raises:
        ValueError: the quantile is not between 0 and 1.
        UserError: there is no rule or set of a name in `filters`.
    """
    members, languages = _members(files, filters, language)
    found = [_calibrated(files, rules, languages[rules], rows, quantile) for rules, rows in members.items()]
    return sorted(found, key=lambda group: -group.total.documents)


Rows = list[NDArray[np.int64]]
"""Rows in each of the files."""


def _members(
    files: Sequence[Path], filters: Filters, language: str
) -> tuple[dict[tuple[Rule, ...], Rows], dict[tuple[Rule, ...], dict[str, int]]]:
    """Rules -> the documents that they judge, and how many are of which language."""
    members: dict[tuple[Rule, ...], Rows] = {}
    languages: dict[tuple[Rule, ...], dict[str, int]] = {}
    for number, path in enumerate(files):
        with pq.ParquetFile(path) as file:
            table = file.read(columns=["source", "language", "switches"])
        for spoken, own, rows in groups_of(table, switches_of(table)):
            # Limits that are settings of their own have no SET in their names.
            rules = tuple(rule for rule in filters.rules(spoken, own) if "." in rule.name)
            if not rules or language not in ("", spoken):
                continue
            held = members.setdefault(rules, [np.empty(0, np.int64) for _ in files])
            held[number] = np.union1d(held[number], rows)
            counts = languages.setdefault(rules, {})
            counts[spoken] = counts.get(spoken, 0) + len(rows)
    return members, languages


def _calibrated(
    files: Sequence[Path],
    rules: tuple[Rule, ...],
    languages: dict[str, int],
    rows: Rows,
    quantile: float,
) -> CalibratedGroup:
    sizes = _columns(files, ["num_bytes"], rows)["num_bytes"].to_numpy()
    gone_now, gone_then = np.zeros(len(sizes), bool), np.zeros(len(sizes), bool)
    shown = []
    for rule in rules:
        measures = _columns(files, columns_of(rule), rows)
        measures = with_left(measures) if judges_the_edited(rule) else measures
        at = _rounded(calibrate(measures, [rule], quantile).get(rule.name, rule.threshold), rule)
        now, then = failing(measures, rule), failing(measures, dataclasses.replace(rule, threshold=at))
        shown.append(CalibratedRule(rule, at, _share(sizes[now]), _share(sizes[then])))
        gone_now |= now
        gone_then |= then
    ordered = dict(sorted(languages.items(), key=lambda item: (-item[1], item[0])))
    shares = (_share(sizes[gone]) for gone in (gone_now, gone_then))
    return CalibratedGroup(ordered, _share(sizes), tuple(shown), *shares)


def _share(sizes: NDArray[np.int64]) -> Share:
    return Share(len(sizes), int(sizes.sum()))


def _columns(files: Sequence[Path], names: Sequence[str], rows: Rows) -> pa.Table:
    tables = []
    for path, chosen in zip(files, rows, strict=True):
        if len(chosen):
            with pq.ParquetFile(path) as file:
                tables.append(file.read(columns=list(names)).take(pa.array(chosen)))
    return pa.concat_tables(tables)


def columns_of(rule: Rule) -> list[str]:
    """The columns that it asks for."""
    named = [rule.measure, rule.per, rule.at_least[0] if rule.at_least else ""]
    found: dict[str, None] = {}

    def note(name: str) -> float:
        if name in DERIVED:
            return float(DERIVED[name](note))
        found[name] = None
        return 1.0

    for name in filter(None, named):
        note(name)
    left = [f"left_{name}" for name in found if name in LEFT_COLUMNS] if judges_the_edited(rule) else []
    return [*found, *left]


def _rounded(threshold: float, rule: Rule) -> float:
    """To a few digits, so that it can be read, and to the side where the rule drops less."""
    if threshold == rule.threshold or threshold.is_integer():
        return threshold
    nearest = float(f"{threshold:.{DIGITS}g}")
    if nearest == threshold or (nearest > threshold) == (rule.comparison == ">"):
        return nearest
    side = ROUND_CEILING if rule.comparison == ">" else ROUND_FLOOR
    return float(Context(prec=DIGITS, rounding=side).create_decimal_from_float(threshold))


def as_thresholds(groups: Sequence[CalibratedGroup], already: Sequence[str] = ()) -> list[str]:
    """`RULE=NUMBER` of every rule, for the setting; of two groups with a rule the larger one's.

    already: thresholds that are set; those of rules that were not calibrated stay.
    """
    found: dict[str, str] = {}
    for group in groups:
        for each in group.rules:
            if each.threshold != each.rule.threshold:
                found.setdefault(each.rule.name, f"{each.rule.name}={each.threshold:.10g}")
    kept = [text for text in already if parse_threshold(text)[0] not in found]
    return [*kept, *found.values()]
