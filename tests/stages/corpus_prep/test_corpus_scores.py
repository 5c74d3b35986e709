"""The scores of all documents, and decisions from them, against the texts and against real runs."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from data_contracts.document_scores import OPTIONAL, STATISTICS
from data_contracts.tables import part_files
from stages.corpus_prep.calibration import as_thresholds, calibrate_corpus
from stages.corpus_prep.cleaning import MEASURES_SCHEMA
from stages.corpus_prep.filtering import Filters
from stages.corpus_prep.measuring.columns import COLUMNS
from stages.corpus_prep.measuring.measures import measure
from stages.corpus_prep.redeciding import Decider, redecide
from stages.corpus_prep.scores import NOT_SCORES

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
SMALL = {"num_tool_conversations": 10, "num_question_conversations": 10, "num_scenarios": 5}
WORDS = "lamp river stone apple bridge keeper storm bell light boat garden field the and of to".split()  # noqa: SIM905
LEAK = (
    "The old ferry crosses the grey river twice a day and carries sheep, letters and tired travellers home."
)


def _page(rng: random.Random) -> str:
    """Sentences, of which some pages have few and some repeat theirs."""
    sentences = [f"{' '.join(rng.choices(WORDS, k=rng.randint(4, 9)))}." for _ in range(rng.randint(1, 25))]
    return "\n".join(rng.choices(sentences, k=len(sentences)) if rng.random() < 0.5 else sentences)


@pytest.fixture
def sources(tmp_path: Path) -> tuple[str, ...]:
    """Pages in three files, one of which switches a rule set off; copies; Chinese; a leak."""
    rng = random.Random(8)
    texts = [_page(rng) for _ in range(240)]
    texts[200:210] = texts[:10]
    texts[210] = " ".join([LEAK, *(f"Number {n} of the {word}s is with me." for n, word in enumerate(WORDS))])
    for number, name in enumerate(("one", "two", "three")):
        rows = [
            {"title": f"page {n}", "text": text, "license": "MIT"} for n, text in enumerate(texts[number::3])
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (
        f"{tmp_path}/one.jsonl",
        f"{tmp_path}/two.jsonl",
        f"{tmp_path}/three.jsonl;filters=-fineweb",
        str(FIXTURES / "corpus_chinese.csv"),
    )


@pytest.fixture
def questions(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "questions" / "ferry.jsonl"
    path.parent.mkdir()
    row = {"question": LEAK, "choices": ["yes", "no"], "answer": 0}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return (str(path),)


def test_the_contract_names_every_measure() -> None:
    assert tuple(COLUMNS) == STATISTICS
    known = {*STATISTICS, *OPTIONAL, "doc_id", "source", "language", "language_score", "num_bytes"}
    assert set(MEASURES_SCHEMA.names) - NOT_SCORES <= known


def test_every_document_has_one_row_that_agrees_with_the_other_parts(
    run_stage: Any, sources: tuple[str, ...], questions: tuple[str, ...]
) -> None:
    result = run_stage(
        sources=sources,
        benchmark_sources=questions,
        filters=("gopher_quality", "fineweb"),
        languages=("en",),
        **SMALL,
    )
    rows = result.rows("document_scores")
    steps = {row["step"]: row for row in result.rows("funnel")}
    assert len(rows) == steps["repaired"]["documents_out"] == 260
    told = Counter((row["doc_id"], row["source"], row["verdict"]) for row in rows)
    expected = Counter((row["doc_id"], row["source"], "kept") for row in result.rows("documents"))
    expected += Counter((row["doc_id"], row["source"], row["step"]) for row in result.rows("rejects"))
    assert told == expected
    assert {row["verdict"] for row in rows} == {"kept", "quality", "deduplicated", "decontaminated"}
    reasons = {(row["doc_id"], row["source"], row["verdict"]): row["reasons"] for row in rows}
    for reject in result.rows("rejects"):
        assert reject["reason"] in reasons[reject["doc_id"], reject["source"], reject["step"]]
    assert all((row["reasons"] == []) == (row["verdict"] == "kept") for row in rows)
    chinese = [row for row in rows if row["language"] == "zh"]
    assert len(chinese) == 20 and all("other_language" in row["reasons"] for row in chinese)
    assert {row["switches"] for row in rows if row["source"] == "three.jsonl"} == {"-fineweb"}
    assert max(len(row["reasons"]) for row in rows) > 2
    assert all(row[name] is None for row in rows for name in OPTIONAL.keys() - set(MEASURES_SCHEMA.names))


def test_scores_are_those_of_the_text_and_say_where_it_is_from(
    run_stage: Any, sources: tuple[str, ...], tmp_path: Path
) -> None:
    result = run_stage(sources=sources, filters=("documentation",), **SMALL)
    scores = {row["doc_id"]: row for row in result.rows("document_scores") if row["verdict"] == "kept"}
    documents = result.rows("documents")
    assert len(documents) == len(scores) > 100
    texts = pa.array([row["text"] for row in documents], pa.large_string())
    for row, measured in zip(documents, measure(texts).to_pylist(), strict=True):
        score = scores[row["doc_id"]]
        assert {name: score[name] for name in COLUMNS} == {name: measured[name] for name in COLUMNS}
        same = ("source", "title", "licence", "origin", "byte_start", "byte_end", "num_bytes", "language")
        assert {name: score[name] for name in same} == {name: row[name] for name in same}
        if row["source"].endswith(".jsonl"):
            written = (tmp_path / row["origin"]).read_bytes()[row["byte_start"] : row["byte_end"]]
            assert json.loads(written)["text"] == row["text"]
            assert score["licence"] == "MIT"


BEFORE = {"filters": ("documentation",)}
AFTER = {
    "filters": ("gopher_repetition", "fineweb", "gopher_quality"),
    "thresholds": ("gopher_repetition.top_2_gram=0.12", "fineweb.short_lines=off"),
    "languages": ("en",),
}


def test_decided_anew_is_what_a_real_run_decides(run_stage: Any, sources: tuple[str, ...]) -> None:
    first, second = (run_stage(sources=sources, **settings, **SMALL) for settings in (BEFORE, AFTER))
    deciders = [
        Decider(Filters(settings["filters"], settings.get("thresholds", ())), settings.get("languages", ()))
        for settings in (BEFORE, AFTER)
    ]
    found = redecide(part_files(first.parts["document_scores"]), *deciders, num_examples=5)
    dropped = [
        Counter({(r["doc_id"], r["source"]): 1 for r in run.rows("rejects") if r["step"] == "quality"})
        for run in (first, second)
    ]
    rejects = [row for row in second.rows("rejects") if row["step"] == "quality"]
    assert found.total.documents == len(first.rows("document_scores"))
    assert found.after.dropped.documents == len(rejects) > 50
    assert found.after.dropped.num_bytes == sum(row["num_bytes"] for row in rejects)
    assert found.told_otherwise == 0
    # Each rule, by what the second run itself says of its documents.
    reasons = Counter(
        reason
        for row in second.rows("document_scores")
        if row["verdict"] == "quality"
        for reason in row["reasons"]
    )
    assert {name: share.documents for name, share in found.after.by_reason.items()} == reasons
    alone = Counter(row["reasons"][0] for row in second.rows("document_scores")
                    if row["verdict"] == "quality" and len(row["reasons"]) == 1)  # fmt: skip
    assert {n: s.documents for n, s in found.after.alone.items() if s.documents} == alone
    went = {key for key in dropped[1] if key not in dropped[0]}
    came = {key for key in dropped[0] if key not in dropped[1]}
    assert [(each.doc_id, each.source) for each in found.going] == sorted(went)[:5]
    assert [(each.doc_id, each.source) for each in found.returning] == sorted(came)[:5]
    assert all(each.why for each in (*found.going, *found.returning))


def test_the_counts_of_a_rule_are_those_of_sql(run_stage: Any, sources: tuple[str, ...]) -> None:
    result = run_stage(sources=sources, **BEFORE, **SMALL)
    files = part_files(result.parts["document_scores"])
    moved = ("gopher_repetition.top_2_gram=0.12", "gopher_repetition.duplicate_lines=0.2")
    after = Decider(Filters(("gopher_repetition",), moved))
    found = redecide(files, Decider(Filters(("documentation",))), after).after
    for reason, condition in (
        ("top_2_gram", "top_2_gram_characters / characters > 0.12"),
        ("duplicate_lines", "duplicate_lines / lines > 0.2"),
    ):
        query = f"select count(*), sum(num_bytes) from read_parquet(?) where {condition}"
        count, num_bytes = duckdb.execute(query, [[str(file) for file in files]]).fetchone() or (0, 0)
        share = found.by_reason[f"gopher_repetition.{reason}"]
        assert (share.documents, share.num_bytes) == (count, num_bytes)
        assert count > 5


def test_calibrated_thresholds_drop_the_share_and_a_stricter_one_more(
    run_stage: Any, sources: tuple[str, ...]
) -> None:
    result = run_stage(sources=sources[:2], **BEFORE, **SMALL)
    files = part_files(result.parts["document_scores"])
    (group,) = calibrate_corpus(files, Filters(("gopher_repetition", "gopher_quality")), 0.05)
    rows = result.rows("document_scores")
    assert group.languages == {"en": len(rows)} and group.total.documents == len(rows)
    moved = [each for each in group.rules if each.threshold != each.rule.threshold]
    assert len(moved) > 12
    for each in moved:
        assert each.then.documents <= 0.05 * len(rows)
        if not each.rule.per:
            values = sorted(row[each.rule.measure] for row in rows)
            at = (
                values[int(0.05 * len(rows))]
                if each.rule.comparison == "<"
                else values[-1 - int(0.05 * len(rows))]
            )
            assert each.threshold == at
    again = run_stage(
        sources=sources[:2],
        filters=("gopher_repetition", "gopher_quality"),
        thresholds=tuple(as_thresholds([group])),
        **SMALL,
    )
    dropped = [row for row in again.rows("document_scores") if row["verdict"] == "quality"]
    assert len(dropped) == group.then.documents < group.now.documents
    told = Counter(reason for row in dropped for reason in row["reasons"])
    by_rule = {each.rule.reason: each.then.documents for each in group.rules if each.then.documents}
    assert told == by_rule


def test_each_set_of_rules_is_calibrated_on_its_own_documents(
    run_stage: Any, sources: tuple[str, ...]
) -> None:
    result = run_stage(sources=sources, **BEFORE, **SMALL)
    files = part_files(result.parts["document_scores"])
    switched = calibrate_corpus(files, Filters(("gopher_quality", "fineweb")), 0.1)
    assert [group.languages for group in switched] == [{"en": 160, "zh": 20}, {"en": 80}]
    assert {each.rule.name.split(".")[0] for each in switched[1].rules} == {"gopher_quality"}
    groups = calibrate_corpus(files, Filters(("web",)), 0.1)
    assert [group.languages for group in groups] == [{"en": 240}, {"zh": 20}]
    assert {each.rule.name.split(".")[0] for each in groups[1].rules} == {"fineweb2_zh"}
    (chinese,) = calibrate_corpus(files, Filters(("web",)), 0.1, "zh")
    assert chinese == groups[1]
    already = ("documentation.too_short=9", "gopher_repetition.top_2_gram=0.9")
    texts = dict(text.split("=") for text in as_thresholds(groups, already))
    assert texts["documentation.too_short"] == "9"  # not calibrated: stays
    of_most = {each.rule.name: each for each in groups[0].rules}
    assert float(texts["gopher_repetition.top_2_gram"]) == of_most["gopher_repetition.top_2_gram"].threshold
