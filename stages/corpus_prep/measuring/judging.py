"""Decisions from statistics: which rules each document breaks, and thresholds from the user's own corpus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.corpus_prep.measuring.rules import COMPARISONS, DERIVED, REASONS, Rule


def judge(measures: pa.RecordBatch | pa.Table, rules: Iterable[Rule]) -> NDArray[np.uint64]:
    """uint64 [documents]: bit i is set where a rule with the reason REASONS[i] drops the document; 0 is kept.

    measures: what `measures.measure` gave, or as many of its columns as the rules name. All rules are
    asked, so the mask holds every reason, not only the first. A ratio is one division of whole numbers in
    float64, as Python divides, so a document on the threshold is decided as a plain loop would.
    """
    masks = np.zeros(measures.num_rows, np.uint64)
    for rule in rules:
        masks |= failing(measures, rule).astype(np.uint64) << np.uint64(REASONS.index(rule.reason))
    return masks


def judge_by_group(
    measures: pa.RecordBatch | pa.Table, groups: Iterable[Any], rules_of: Mapping[Any, Iterable[Rule]]
) -> NDArray[np.uint64]:
    """As `judge`, with other rules for each group of documents, such as (source, language).

    groups: the group of each document. rules_of: group -> rules; a group without an entry is kept.
    """
    members: dict[Any, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    masks = np.zeros(measures.num_rows, np.uint64)
    for group, rows in members.items():
        masks[rows] = judge(measures.take(pa.array(rows)), rules_of.get(group, ()))
    return masks


def failing(measures: pa.RecordBatch | pa.Table, rule: Rule) -> NDArray[np.bool_]:
    """bool [documents]: whether this rule drops it."""
    drops = COMPARISONS[rule.comparison](rule_values(measures, rule), rule.threshold)  # no number: False
    return drops & _concerned(measures, rule)


def rule_values(measures: pa.RecordBatch | pa.Table, rule: Rule) -> NDArray[np.float64]:
    """float64 [documents]: what the rule compares with its threshold; NaN where it would divide by
    nothing."""
    values = _column(measures, rule.measure)
    if not rule.per:
        return values
    per = _column(measures, rule.per)
    return np.divide(values, per, out=np.full(len(values), np.nan), where=per > 0)


def calibrate(
    measures: pa.RecordBatch | pa.Table, rules: Iterable[Rule], quantile: float = 0.01
) -> dict[str, float]:
    """Rule name -> the threshold at which it drops at most this share of these documents.

    The threshold is a value that occurs, so it keeps its meaning when it is written down. A rule that
    asks for a number of at most 0 or 1 of something (`empty`, `lorem_ipsum`) has no quantile worth naming
    and is left out, as is one that concerns none of the documents, and one whose quantile is 0: "more
    than none" would drop every later document that has any. Pass the result to `rules.choose_rules`.

    Raises:
        ValueError: the quantile is not between 0 and 1.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"a quantile lies between 0 and 1, not at {quantile}")
    found = {}
    for rule in rules:
        values = rule_values(measures, rule)
        values = np.sort(values[_concerned(measures, rule) & ~np.isnan(values)])
        if len(values) and (rule.per or rule.threshold > 1):
            dropped = int(quantile * len(values))
            threshold = float(values[dropped] if rule.comparison == "<" else values[-1 - dropped])
            if threshold or rule.comparison == "<":
                found[rule.name] = threshold
    return found


def _concerned(measures: pa.RecordBatch | pa.Table, rule: Rule) -> NDArray[np.bool_]:
    if rule.at_least is None:
        return np.ones(measures.num_rows, np.bool_)
    column, least = rule.at_least
    return _column(measures, column) >= least


def _column(measures: pa.RecordBatch | pa.Table, name: str) -> NDArray[np.float64]:
    if name in DERIVED:
        return DERIVED[name](lambda column: _column(measures, column))
    return measures.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
