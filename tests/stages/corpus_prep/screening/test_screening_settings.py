"""Every screening setting end to end: what goes or is changed, for which reason, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_contracts.tables import read_rows
from stages.corpus_prep import gathering, preparation
from stages.corpus_prep.cleaning import content_id
from stages.corpus_prep.inputs import external_inputs, outside_inputs
from stages.corpus_prep.screening.identify_languages import identify_languages
from stages.corpus_prep.screening.perplexity import train_character_model
from stages.corpus_prep.screening.quality_classifier import train_classifier
from stages.corpus_prep.spec import CorpusPrepConfig
from stages.runtime.errors import UserError
from stages.runtime.events import read_events

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"
FEW = {
    "num_tool_conversations": 6,
    "num_question_conversations": 6,
    "num_scenarios": 5,
    "near_duplicate_similarity": 0,
    "num_workers": 1,
}
ENGLISH = [
    json.loads(line)["text"]
    for line in (FIXTURES / "corpus_english.jsonl").read_text(encoding="utf-8").splitlines()
]
Row = Mapping[str, Any]


def _lines(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _texts(path: Path, texts: Iterable[str]) -> str:
    return _lines(path, ({"title": f"number {n}", "text": text} for n, text in enumerate(texts)))


def _rejects(result: Any) -> dict[str, tuple[str, str]]:
    return {row["title"]: (row["reason"], row["detail"]) for row in result.rows("rejects")}


def _kept(result: Any) -> dict[str, Row]:
    return {row["title"]: row for row in result.rows("documents")}


def _said(result: Any, level: str) -> list[str]:
    events = read_events(result.folder / "work" / "events.jsonl")
    return [e["message"] for e in events if e["event"] == "log" and e["level"] == level]


TRADITIONAL = "湖邊有一間木頭小屋，屋頂上長滿了青苔。夏天的時候，老人坐在門口修補漁網。"
SIMPLIFIED = "湖边有一间木头小屋，屋顶上长满了青苔。夏天的时候，老人坐在门口修补渔网。"
JAPANESE = (
    "湖のほとりに木の小屋があります。夏になると、老人は戸口に座って漁網を繕い、子どもたちは浅瀬で遊びます。"
)


def test_traditional_characters(run_stage: Any, tmp_path: Path) -> None:
    sources = (
        _texts(tmp_path / "a.jsonl", [TRADITIONAL, JAPANESE, *ENGLISH]),
        _lines(tmp_path / "talk.jsonl", [{"question": "屋頂上長滿了什麼？", "answer": "屋頂上長滿了青苔。"}]),
    )
    plain, simple = (run_stage(sources=sources, simplify_chinese=value, **FEW) for value in (False, True))
    assert [_kept(run)["number 0"]["text"] for run in (plain, simple)] == [TRADITIONAL, SIMPLIFIED]
    assert _kept(simple)["number 1"]["text"] == JAPANESE
    assert _kept(simple)["number 0"]["doc_id"] == content_id(SIMPLIFIED)
    own = next(row for row in simple.rows("conversations") if row["kind"] == "own")
    assert [m["content"] for m in own["messages"]] == ["屋顶上长满了什么？", "屋顶上长满了青苔。"]
    told = "\n".join(_said(simple, "info"))
    assert "traditional_characters 1" in told and "made simplified: 1" in told
    assert "traditional" not in "\n".join(_said(plain, "info"))


def test_titles_of_chinese_documents_are_made_simplified(run_stage: Any, tmp_path: Path) -> None:
    rows = [{"title": "屋頂", "text": TRADITIONAL}, {"title": "東京の風景", "text": JAPANESE}]
    filler = [{"title": f"number {number}", "text": text} for number, text in enumerate(ENGLISH)]
    sources = (_lines(tmp_path / "a.jsonl", rows + filler),)
    plain, simple = (run_stage(sources=sources, simplify_chinese=value, **FEW) for value in (False, True))
    assert {"屋頂", "東京の風景"} <= set(_kept(plain))
    assert {"屋顶", "東京の風景"} <= set(_kept(simple)) and "屋頂" not in _kept(simple)


def test_a_language_that_is_not_sure(run_stage: Any, tmp_path: Path) -> None:
    mixed = [
        "Der Zug le train the slow one, lento pero seguro, en por toget 7 8 9 ok ja nein oui si tak nie.",
        "Kato hundo birdo, lorem kaze mulo tana, ok ok ok, go vai ven kom tule, one zwei tres fire viisi.",
    ]
    texts = [*ENGLISH, *mixed]
    scores = identify_languages(pa.array(texts, pa.large_string()))["language_score"].to_pylist()
    unsure = {f"number {n}" for n, score in enumerate(scores) if score < 0.65}
    assert unsure and len(unsure) < len(texts)
    result = run_stage(sources=(_texts(tmp_path / "a.jsonl", texts),), min_language_score=0.65, **FEW)
    assert {t for t, (reason, _) in _rejects(result).items() if reason == "low_language_score"} == unsure
    assert all("language_score < 0.65" in _rejects(result)[title][1] for title in unsure)
    assert set(_kept(result)) == {f"number {n}" for n in range(len(texts))} - unsure
    told = run_stage(
        sources=(_texts(tmp_path / "a.jsonl", texts) + ";language=en",), min_language_score=0.65, **FEW
    )
    assert len(_kept(told)) == len(texts)


def test_a_threshold_that_a_score_meets_keeps_it(run_stage: Any, tmp_path: Path) -> None:
    scores = identify_languages(pa.array(ENGLISH, pa.large_string()))["language_score"].to_pylist()
    limit = round(sorted(scores)[5], 3)
    result = run_stage(sources=(_texts(tmp_path / "a.jsonl", ENGLISH),), min_language_score=limit, **FEW)
    assert len(_kept(result)) == sum(round(score, 3) >= limit for score in scores)


def test_addresses_by_list(run_stage: Any, tmp_path: Path) -> None:
    listed = tmp_path / "urls.txt"
    listed.write_text(".bad.example\n/casino # gambling\n", encoding="utf-8")
    addresses = ["https://good.test/a", "https://www.bad.example/b", "https://good.test/casino/c", ""]
    rows = [{"title": f"{n}", "text": ENGLISH[n], "url": url} for n, url in enumerate(addresses)]
    more = [
        {"title": "in meta", "text": ENGLISH[4], "meta": {"url": "http://bad.example"}},
        {"title": "other", "text": ENGLISH[5], "meta": {"url": "http://good.test/x"}},
    ]
    pq.write_table(pa.Table.from_pylist(more), tmp_path / "b.parquet")
    sources = (_lines(tmp_path / "a.jsonl", rows), str(tmp_path / "b.parquet"))
    result = run_stage(sources=sources, url_lists=(str(listed),), **FEW)
    rejects = _rejects(result)
    assert {title: reason for title, (reason, _) in rejects.items()} == dict.fromkeys(
        ("1", "2", "in meta"), "listed_url"
    )
    assert "'.bad.example'" in rejects["1"][1] and "'/casino'" in rejects["2"][1]
    origins = {title: row["origin"] for title, row in _kept(result).items()}
    assert origins == {"0": "https://good.test/a", "3": "a.jsonl", "other": "http://good.test/x"}


@pytest.mark.parametrize(("limit", "dropped"), [(0, {"number 20", "number 21"}), (1, {"number 21"})])
def test_phrases_by_list(run_stage: Any, tmp_path: Path, limit: int, dropped: set[str]) -> None:
    listed = tmp_path / "words.txt"
    listed.write_text("free money\n赌场\n", encoding="utf-8")
    texts = [
        *ENGLISH,
        "He told us about Free Money, and nobody on the old bridge believed a single word of it.",
        "这个网站说，网上赌场里人人都能赢钱，赌场的门永远开着，老人听了只是摇头。",
        "They freed money from the box, and counted the coins on the kitchen table until evening.",
    ]
    settings = {"word_lists": (str(listed),), "max_listed_phrases": limit}
    result = run_stage(sources=(_texts(tmp_path / "a.jsonl", texts),), **settings, **FEW)
    rejects = _rejects(result)
    assert set(rejects) == dropped and {reason for reason, _ in rejects.values()} == {"listed_phrase"}
    assert f"'赌场' 2 listed_phrase: listed_phrases > {limit}" in rejects["number 21"][1]


def _scored_sources(tmp_path: Path) -> tuple[str, str, list[str], list[str]]:
    """(good, bad, texts of both, all texts to judge)."""
    good = [" ".join([text] * 4) for text in ENGLISH]
    bad = [f"BUY now {n} cheap WATCHES click click here!!! best price {n}$ deal deal" * 4 for n in range(20)]
    judged = [*ENGLISH[:10], *(f"click here cheap deal {n} best WATCHES price now!!! buy" for n in range(5))]
    return (
        _texts(tmp_path / "good.jsonl", good),
        _texts(tmp_path / "bad.jsonl", bad),
        good + bad,
        judged,
    )


def test_perplexity(run_stage: Any, tmp_path: Path) -> None:
    good, _, learned, judged = _scored_sources(tmp_path)
    model = train_character_model([pa.array(learned[:20], pa.large_string())])
    scores = model.perplexity(pa.array(judged, pa.large_string())).to_pylist()
    limit = sum(sorted(scores)[9:11]) / 2
    assert max(scores[:10]) < limit < min(scores[10:])
    settings = {"good_text": (good,), "max_perplexity": limit, "filters": ()}
    result = run_stage(sources=(_texts(tmp_path / "a.jsonl", judged),), **settings, **FEW)
    expected = {f"number {n}": f"high_perplexity {scores[n]:.4g} " for n in range(10, 15)}
    found = {title: detail for title, (reason, detail) in _rejects(result).items() if reason}
    assert set(found) == set(expected) and all(found[t].startswith(expected[t]) for t in expected)


def test_quality(run_stage: Any, tmp_path: Path) -> None:
    good, bad, learned, judged = _scored_sources(tmp_path)
    arrays = [pa.array(part, pa.large_string()) for part in (learned[:20], learned[20:], judged)]
    scores = train_classifier([arrays[0]], [arrays[1]]).score(arrays[2]).to_pylist()
    assert min(scores[:10]) > 0.5 > max(scores[10:])
    settings = {"good_text": (good,), "bad_text": (bad,), "min_quality": 0.5, "filters": ()}
    result = run_stage(sources=(_texts(tmp_path / "a.jsonl", judged),), **settings, **FEW)
    rejects = _rejects(result)
    assert {title: reason for title, (reason, _) in rejects.items()} == {
        f"number {n}": "low_quality_score" for n in range(10, 15)
    }
    assert rejects["number 10"][1].startswith(f"low_quality_score {scores[10]:.4g} ")
    free = run_stage(
        sources=(_texts(tmp_path / "a.jsonl", judged),), good_text=(good,), bad_text=(bad,), filters=(), **FEW
    )
    assert len(_kept(free)) == 15


LETTER = "Write to jane.doe@firm.de or call +49 30 1234567; the server is 93.184.216.34, not 127.0.0.1."
MASKED = "Write to [EMAIL] or call [PHONE]; the server is [IP], not 127.0.0.1."


def _personal_sources(folder: Path) -> tuple[str, ...]:
    call = {"function": {"name": "mail", "arguments": {"to": "jane@firm.de", "copies": 2}}}
    talk = [
        {"role": "user", "content": "Mail jane@firm.de, please."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sent to jane@firm.de"},
        {"role": "assistant", "content": "Done."},
    ]
    pair = {"prompt": "Whom do I ask?", "chosen": "Ask bob@firm.de.", "rejected": "Ask 13812345678."}
    return (
        _lines(
            folder / "a.jsonl",
            [{"title": "of jane@firm.de", "text": LETTER}, {"title": "bob@firm.de", "text": ""}],
        ),
        _texts(folder / "b.jsonl", ENGLISH),
        _lines(folder / "talk.jsonl", [{"messages": talk}]),
        _lines(folder / "pairs.jsonl", [pair]),
        _lines(folder / "odd.jsonl", [{"text": ENGLISH[0]}, {"weather": "ask jane@firm.de"}]),
    )


def test_personal_data_is_masked_everywhere_by_default(run_stage: Any, tmp_path: Path) -> None:
    result = run_stage(sources=_personal_sources(tmp_path), **FEW)
    document = _kept(result)["of [EMAIL]"]
    assert document["text"] == MASKED and document["doc_id"] == content_id(MASKED)
    assert document["num_bytes"] == len(MASKED)
    index = {row["doc_id"] for row in read_rows(result.parts["dedup_index"])}
    assert content_id(MASKED) in index and content_id(LETTER) not in index
    everything = "".join(str(row) for part in result.parts for row in read_rows(result.parts[part]))
    assert "firm.de" not in everything and "13812345678" not in everything
    own = next(row for row in result.rows("conversations") if row["kind"] == "own")
    assert own["messages"][0]["content"] == "Mail [EMAIL], please."
    [call] = own["messages"][1]["tool_calls"]
    assert json.loads(call["arguments"]) == {"to": "[EMAIL]", "copies": 2}
    (pair,) = (row for row in result.rows("preferences") if row["kind"] == "own")
    answers = [pair[side]["content"] for side in ("chosen", "rejected")]
    assert answers == ["Ask [EMAIL].", "Ask [PHONE]."]


def test_what_was_masked_is_counted(run_stage: Any, tmp_path: Path) -> None:
    result = run_stage(sources=_personal_sources(tmp_path), **FEW)
    events = read_events(result.folder / "work" / "events.jsonl")
    (table,) = (e for e in events if e["event"] == "table" and e["name"] == "masked")
    assert table["columns"] == ["personal data", "documents", "records"]
    assert table["rows"] == [
        ["pii_email", 1, 4],
        ["pii_ip", 1, 0],
        ["pii_phone", 1, 1],
        ["with any", 1, 2],
    ]
    masked = {name: number for name, number in result.metrics.items() if name.startswith("masked_")}
    assert masked == {"masked_email": 5, "masked_ip": 1, "masked_phone": 2}


def test_kinds_of_personal_data_are_switched(run_stage: Any, tmp_path: Path) -> None:
    none = run_stage(sources=_personal_sources(tmp_path), mask=(), **FEW)
    assert _kept(none)["of jane@firm.de"]["text"] == LETTER
    assert not any(name.startswith("masked") for name in none.metrics)
    only = run_stage(sources=_personal_sources(tmp_path), mask=("ip",), **FEW)
    assert _kept(only)["of jane@firm.de"]["text"] == LETTER.replace("93.184.216.34", "[IP]")
    with pytest.raises(ValueError, match="iban"):
        CorpusPrepConfig.model_validate({"mask": ("iban",)})


def test_a_question_is_found_in_text_that_was_masked(run_stage: Any, tmp_path: Path) -> None:
    question = "Who answers letters that are sent to office@harbour-firm.de about the old ferry and its bell?"
    asked = _lines(tmp_path / "q.jsonl", [{"question": question, "choices": ["a", "b"], "answer": 0}])
    texts = [f"A tale. {question} The end.", *ENGLISH]
    result = run_stage(sources=(_texts(tmp_path / "a.jsonl", texts),), benchmark_sources=(asked,), **FEW)
    assert {t: reason for t, (reason, _) in _rejects(result).items()} == {"number 0": "benchmark_overlap"}


def test_a_missing_language_model_is_told_once(
    run_stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "SHARD_BYTES", 1_000)
    monkeypatch.setattr(preparation, "why_no_model", lambda: "languages are told by their scripts alone")
    sources = tuple(_texts(tmp_path / f"{n}.jsonl", ENGLISH[5 * n : 5 * n + 5]) for n in range(4))
    result = run_stage(sources=sources, **FEW)
    assert len(list((result.folder / "out" / "documents").iterdir())) > 1
    assert _said(result, "warning").count("languages are told by their scripts alone") == 1


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"max_perplexity": 9.0}, "good_text"),
        ({"min_quality": 0.5}, "good_text"),
        ({"min_quality": 0.5, "good_text": ("good.jsonl",)}, "bad_text"),
        ({"bad_text": ("bad.jsonl",)}, "good_text"),
        ({"max_listed_phrases": 2}, "word_lists"),
    ],
)
def test_a_threshold_without_its_files_is_refused(
    run_stage: Any, settings: dict[str, Any], missing: str
) -> None:
    source = str(FIXTURES / "corpus_english.jsonl")
    with pytest.raises(UserError, match=rf"is set, and corpus_prep\.{missing} names no file") as caught:
        run_stage(sources=(source,), **settings, **FEW)
    assert missing in caught.value.hint
    with pytest.raises(UserError, match=missing):
        external_inputs(CorpusPrepConfig(sources=(source,), **settings))


def test_too_little_text_and_missing_files_are_refused(run_stage: Any, tmp_path: Path) -> None:
    source = (str(FIXTURES / "corpus_english.jsonl"),)
    few = _texts(tmp_path / "few.jsonl", ENGLISH[:3])
    with pytest.raises(UserError, match="10,000 characters of good text"):
        run_stage(sources=source, good_text=(few,), **FEW)
    with pytest.raises(UserError, match=r"corpus_prep.word_lists: there is no file .*none.txt"):
        run_stage(sources=source, word_lists=(str(tmp_path / "none.txt"),), **FEW)
    with pytest.raises(UserError, match=r"corpus_prep.good_text: .* does not exist"):
        external_inputs(CorpusPrepConfig(sources=source, good_text=(str(tmp_path / "none.txt"),)))


def test_lists_and_texts_count_by_content_and_are_shipped(tmp_path: Path) -> None:
    words, good = tmp_path / "words.txt", tmp_path / "good.txt"
    moved = tmp_path / "moved" / "words.txt"
    moved.parent.mkdir()
    for path in (words, moved):
        path.write_text("casino\n", encoding="utf-8")
    good.write_text(ENGLISH[0], encoding="utf-8")

    def config(listed: Path) -> CorpusPrepConfig:
        sources = (str(FIXTURES / "corpus_english.jsonl"),)
        return CorpusPrepConfig(sources=sources, word_lists=(str(listed),), good_text=(str(good),))

    before = external_inputs(config(words))
    assert before == external_inputs(config(moved))
    assert {words, good} <= set(outside_inputs(config(words)).same_place)
    words.write_text("casino\nroulette\n", encoding="utf-8")
    assert external_inputs(config(words)) != before
    good.write_text(ENGLISH[1], encoding="utf-8")
    assert external_inputs(config(moved)) != before
