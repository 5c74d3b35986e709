"""Decisions from stored statistics: thresholds, overrides, calibration, and the rules for documentation."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stages.corpus_prep import quality_filters
from stages.corpus_prep.measuring.columns import COLUMNS
from stages.corpus_prep.measuring.judging import calibrate, failing, judge, judge_by_group, rule_values
from stages.corpus_prep.measuring.measures import measure
from stages.corpus_prep.measuring.rules import (
    DERIVED,
    MEASURES,
    REASONS,
    RULE_SETS,
    choose_rules,
    parse_threshold,
    reasons_of,
)
from stages.corpus_prep.screening.screen_rules import NOT_JUDGED, SCREEN_SCHEMA, ScreenLimits
from stages.runtime.errors import UserError

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"


def _measures(**columns: list[int]) -> pa.RecordBatch:
    size = len(next(iter(columns.values())))
    return pa.record_batch({name: pa.array(columns.get(name, [0] * size), pa.int32()) for name in COLUMNS})


def _rule(name: str):
    return next(rule for rules in RULE_SETS.values() for rule in rules if rule.name == name)


def test_every_rule_is_whole() -> None:
    asked = ScreenLimits(0.5, max_perplexity=9.0, min_quality=0.5).rules()
    rules = [*(rule for rules in RULE_SETS.values() for rule in rules), *asked]
    assert len({rule.name for rule in rules}) == len(rules)
    assert len(REASONS) == len(set(REASONS)) <= 64
    for rule in rules:
        assert rule.reason in REASONS and rule.source
        measures = {*MEASURES, *SCREEN_SCHEMA.names, "language_score"}
        assert rule.measure in measures - NOT_JUDGED and (rule.per in MEASURES or not rule.per)
    named = {rule.name: rule.reason for rule in rules}
    assert {named[reason] for reason in REASONS} == set(REASONS)  # each is a rule's own name as well
    assert set(DERIVED).isdisjoint(COLUMNS)


def test_thresholds_are_met_exactly() -> None:
    """3/10 > 0.3 is false in float64 as in Python, where float32 would say otherwise."""
    rule = _rule("gopher_repetition.duplicate_lines")
    counts = [(n, d) for d in range(1, 200) for n in range(d + 1)]
    measures = _measures(duplicate_lines=[n for n, _ in counts], lines=[d for _, d in counts])
    assert failing(measures, rule).tolist() == [n / d > 0.3 for n, d in counts]
    sizes = _measures(plain_words=[49, 50, 100_000, 100_001])
    assert failing(sizes, _rule("gopher_quality.long_document")).tolist() == [
        False, False, False, True,
    ]  # fmt: skip


def test_nothing_is_divided_by_nothing() -> None:
    rule = _rule("gopher_quality.letter_words")
    measures = _measures(letter_words=[0, 0], words=[0, 1])
    assert np.isnan(rule_values(measures, rule)).tolist() == [True, False]
    assert failing(measures, rule).tolist() == [False, True]


def test_a_mask_holds_every_reason() -> None:
    measures = _measures(
        words=[100, 100],
        newlines=[50, 0],
        nonblank_lines=[9, 9],
        terminal_lines=[1, 9],
        characters=[500, 500],
    )
    masks = judge(measures, RULE_SETS["fineweb"])
    assert masks.dtype == np.uint64
    assert [reasons_of(mask) for mask in masks.tolist()] == [
        ["fineweb.line_punctuation", "fineweb.newlines"],
        [],
    ]
    assert judge(measures, ()).tolist() == [0, 0]


def test_thresholds_move_and_rules_go() -> None:
    moved = dict(map(parse_threshold, ["fineweb.newlines=0.6", "fineweb.line_punctuation=off"]))
    assert moved == {"fineweb.newlines": 0.6, "fineweb.line_punctuation": None}
    rules = choose_rules(["fineweb", "c4"], moved)
    assert len(rules) == len(RULE_SETS["fineweb"]) + len(RULE_SETS["c4"]) - 1
    measures = _measures(
        words=[100], newlines=[50], nonblank_lines=[9], c4_terminal_sentences=[5], characters=[99]
    )
    assert judge(measures, rules).tolist() == [0]
    assert judge(measures, choose_rules(["fineweb"])).tolist() != [0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choose_rules(["gopher_qualty"]), "did you mean 'gopher_quality'"),
        (lambda: choose_rules([], {"gopher_repetition.top_2_grams": 1}), "'gopher_repetition.top_2_gram'"),
        (lambda: parse_threshold("gopher_repetition.top_2_gram"), "RULE=NUMBER"),
        (lambda: parse_threshold("fineweb.newlines=many"), "not 'fineweb.newlines=many'"),
    ],
)  # fmt: skip
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_each_group_has_its_own_rules() -> None:
    measures = _measures(
        words=[100] * 3,
        newlines=[25] * 3,
        nonblank_lines=[9] * 3,
        terminal_lines=[9] * 3,
        characters=[500] * 3,
    )
    rules = {"en": choose_rules(["fineweb"]), "zh": choose_rules(["fineweb2_zh"])}
    masks = judge_by_group(measures, ["en", "zh", "code"], rules).tolist()
    assert masks[0] == masks[2] == 0
    assert "fineweb.newlines" in reasons_of(masks[1])


def test_calibrated_thresholds_drop_the_share_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    counts = {name: rng.integers(1, 100_000, 1000).tolist() for name in COLUMNS}
    counts |= {"words": rng.integers(500, 900, 1000).tolist(), "nonblank_lines": [20] * 1000}
    measures = _measures(**counts)
    sets = ["gopher_quality", "gopher_repetition", "documentation"]
    found = calibrate(measures, choose_rules(sets), 0.05)
    assert "gopher_repetition.empty" not in found and "gopher_quality.short_document" in found
    for rule in choose_rules(sets, found):
        if rule.name in found:
            values = rule_values(measures, rule)
            assert rule.threshold in values
            assert failing(measures, rule).sum() == 50 or len(set(values.tolist())) < 900
            assert failing(measures, rule).sum() <= 50
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibrate(measures, choose_rules(sets), 1.0)


def test_no_threshold_of_more_than_none_is_proposed() -> None:
    counts = {name: [100] * 100 for name in COLUMNS} | {"replacement_characters": [0] * 98 + [3, 5]}
    rules = choose_rules(["documentation"])
    assert "documentation.broken_characters" in {rule.name for rule in rules}
    found = calibrate(_measures(**counts), rules, 0.05)
    assert found and "documentation.broken_characters" not in found
    assert calibrate(_measures(**counts), rules, 0.01)["documentation.broken_characters"] > 0


def _documentation_texts() -> list[str]:
    rng = random.Random(2)
    texts = [
        json.loads(line)["text"] for line in (FIXTURES / "corpus_english.jsonl").read_text().splitlines()
    ]
    chinese = (FIXTURES / "corpus_chinese.csv").read_text(encoding="utf-8").splitlines()
    spoiled = [
        lambda text: text[: rng.randrange(60)],
        lambda text: text + "\ufffd" * rng.randrange(6),
        lambda text: text + "|=>{}[]~^" * rng.randrange(50),
        lambda text: text + "0123456789" * rng.randrange(90),
        lambda text: text + " " + "Zm9vYmFyYmF6" * rng.randrange(50),
        lambda text: "\n".join([text[:40]] * rng.randrange(1, 30) + text.split(" ")),
        lambda text: (text[:60] + " ") * rng.randrange(1, 40),
        lambda text: text,
        lambda text: text.replace(" ", ""),
    ]
    return [spoil(text) for text in texts + chinese for spoil in spoiled]


@pytest.mark.parametrize(
    ("language", "rules"),
    [("en", "documentation"), ("zh", "documentation_zh"), ("code", "documentation_code")],
)
def test_documentation_is_judged_as_by_plain_python(language: str, rules: str) -> None:
    texts = _documentation_texts()
    masks = judge(measure(pa.array(texts, pa.large_string())), RULE_SETS[rules]).tolist()
    reasons = set()
    for text, mask in zip(texts, masks, strict=True):
        keep, reason, _ = quality_filters.judge(text, language)
        assert keep is (mask == 0), text
        assert keep or f"documentation.{reason}" == reasons_of(mask)[0], text
        reasons.update(reasons_of(mask))
    assert reasons >= {f"documentation.{check.__name__}" for check in quality_filters.FILTERS}
