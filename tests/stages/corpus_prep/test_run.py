"""The stage as a whole on small texts in three languages: contracts, the funnel, splits, bytes, messages."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.corpus_prep.cleaning import content_id
from stages.corpus_prep.funnel import STEPS
from stages.corpus_prep.languages import detect_language
from stages.corpus_prep.quality_filters import judge
from stages.corpus_prep.run import run
from stages.corpus_prep.spec import SPEC
from stages.corpus_prep.text_repair import repair_text
from stages.runtime.errors import UserError
from stages.runtime.events import read_events
from stages.runtime.main import main

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
SMALL = {"num_tool_conversations": 60, "num_question_conversations": 60, "num_scenarios": 10}
UNLIKE = {**SMALL, "near_duplicate_similarity": 0}
PLANTED = (
    "The old ferry crosses the grey river twice a day and carries sheep, letters and tired travellers home."
)


@pytest.fixture(scope="module")
def english() -> list[dict[str, str]]:
    lines = (FIXTURES / "corpus_english.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def sources(tmp_path: Path, english: list[dict[str, str]]) -> tuple[str, ...]:
    """All fixtures, and a Parquet file with planted duplicates, a short, a mangled and a leaking text."""
    planted = [
        {"title": "again", "text": english[0]["text"].upper().replace(". ", ".\r\n")},
        {"title": "same", "text": english[1]["text"]},
        {"title": "short", "text": "Nothing here."},
        {"title": "empty", "text": " \u200b "},
        {
            "title": "mangled",
            "text": "Die sÃ¼ÃŸen Ã„pfel liegen im kÃ¼hlen Keller und warten auf den Winter.",
        },
        {"title": "leaking", "text": f"A tale. {PLANTED} The end."},
    ]
    pq.write_table(pa.Table.from_pylist(planted), tmp_path / "planted.parquet")
    names = (
        "english.jsonl",
        "chinese.csv",
        "arabic.jsonl",
        "notes.md",
        "dialogues.jsonl",
        "preferences.jsonl",
    )
    return (*(str(FIXTURES / f"corpus_{name}") for name in names), str(tmp_path / "planted.parquet"))


@pytest.fixture
def questions(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "ferry.jsonl"
    row = {"question": PLANTED, "choices": ["yes", "no"], "answer": 0}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return (str(path),)


def test_every_part_keeps_its_contract_and_both_splits_exist(run_stage, sources, questions) -> None:
    result = run_stage(sources=sources, benchmark_sources=questions, **SMALL)
    for part, contract in SPEC.writes.items():
        assert contract.check(result.parts[part]) == [], part
    for part in ("documents", "conversations", "preferences"):
        assert {row["split"] for row in result.rows(part)} == {"train", "validation"}, part
    documents = result.rows("documents")
    assert Counter(row["language"] for row in documents)["zh"] == 20
    assert Counter(row["language"] for row in documents)["ar"] == 20
    assert all(row["num_bytes"] == len(row["text"].encode()) for row in documents)
    assert result.metrics["num_documents"] == len(documents)
    assert result.metrics["num_bytes"] == sum(row["num_bytes"] for row in documents)
    assert Counter(row["kind"] for row in result.rows("conversations"))["own"] == 10
    assert Counter(row["kind"] for row in result.rows("preferences")) == {"own": 10}
    assert not (result.folder / "work" / "scratch.parquet").exists()


def test_the_funnel_and_the_rejects_agree_with_a_plain_loop(run_stage, sources, english) -> None:
    result = run_stage(sources=sources, **SMALL)
    texts = [(row["title"], row["text"]) for row in english]
    with (FIXTURES / "corpus_chinese.csv").open(encoding="utf-8", newline="") as file:
        texts += [(row["title"], row["text"]) for row in csv.DictReader(file)]
    lines = (FIXTURES / "corpus_arabic.jsonl").read_text(encoding="utf-8").splitlines()
    texts += [(row["title"], row["text"]) for row in map(json.loads, lines)]
    texts.append(("notes", (FIXTURES / "corpus_notes.md").read_text(encoding="utf-8")))
    texts += [(row["title"], row["text"]) for row in pq.read_table(sources[-1]).to_pylist()]
    counts = {"read": len(texts)}
    repaired = [(title, repair_text(text).text) for title, text in texts]
    repaired = [(title, text) for title, text in repaired if text.strip()]
    counts["repaired"] = len(repaired)
    good = [(title, text) for title, text in repaired if judge(text, detect_language(text))[0]]
    counts["quality"] = len(good)
    counts["deduplicated"] = len({" ".join(text.split()).casefold() for _, text in good})
    steps = {row["step"]: row for row in result.rows("funnel")}
    assert {name: steps[name]["documents_out"] for name in counts} == counts
    assert counts == {"read": 67, "repaired": 66, "quality": 65, "deduplicated": 63}
    rejects = Counter(row["step"] for row in result.rows("rejects"))
    ordered = [steps[name] for name in STEPS]
    assert [row["position"] for row in ordered] == list(range(len(STEPS)))
    for before, after in itertools.pairwise(ordered):
        assert before["documents_out"] == after["documents_in"]
        assert before["bytes_out"] == after["bytes_in"]
    for row in ordered:
        dropped = row["documents_in"] - row["documents_out"]
        assert dropped == (0 if row["step"] in ("sampled", "size_limit") else rejects[row["step"]])
    assert ordered[-1]["documents_out"] == len(result.rows("documents"))
    assert ordered[-1]["bytes_out"] == sum(row["num_bytes"] for row in result.rows("documents"))


def test_each_planted_text_is_dropped_for_its_reason(run_stage, sources, questions) -> None:
    result = run_stage(sources=sources, benchmark_sources=questions, **SMALL)
    reasons = {row["title"]: (row["step"], row["reason"]) for row in result.rows("rejects")}
    assert reasons == {
        "again": ("deduplicated", "exact_duplicate"),
        "same": ("deduplicated", "exact_duplicate"),
        "short": ("quality", "documentation.too_short"),
        "empty": ("repaired", "empty"),
        "leaking": ("decontaminated", "benchmark_overlap"),
    }
    documents = {row["title"]: row for row in result.rows("documents")}
    assert documents["mangled"]["text"].startswith("Die süßen Äpfel")
    duplicate = next(row for row in result.rows("rejects") if row["title"] == "same")
    assert duplicate["doc_id"] == documents["How to store apples"]["doc_id"]
    leak = next(row for row in result.rows("rejects") if row["title"] == "leaking")
    assert "ferry.jsonl" in leak["detail"]
    assert leak["preview"].startswith("A tale.")
    assert result.metrics["dropped_exact_duplicate"] == 2


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def test_the_same_input_gives_the_same_bytes(run_stage, sources, questions) -> None:
    first = run_stage(sources=sources, benchmark_sources=questions, **SMALL)
    second = run_stage(sources=sources, benchmark_sources=questions, **SMALL)
    assert {name.partition("/")[0] for name in _digests(first.folder / "out")} == set(SPEC.writes)
    assert _digests(first.folder / "out") == _digests(second.folder / "out")
    other_seed = run_stage(sources=sources, benchmark_sources=questions, seed=1, **SMALL)
    changed = {
        name for name, digest in _digests(other_seed.folder / "out").items()
        if digest != _digests(first.folder / "out")[name]
    }  # fmt: skip
    assert "documents/part-00000.parquet" not in changed
    assert "scenarios/part-00000.parquet" in changed


def test_ids_and_splits_do_not_depend_on_the_order_of_sources(run_stage, sources) -> None:
    forward = run_stage(sources=sources, **SMALL)
    backward = run_stage(sources=tuple(reversed(sources)), **SMALL)

    def splits(result: Any) -> dict[str, str]:
        return {row["doc_id"]: row["split"] for row in result.rows("documents")}

    assert splits(forward) == splits(backward)
    assert all(row["doc_id"] == content_id(row["text"]) for row in forward.rows("documents"))


def test_missing_records_are_derived_from_documents(run_stage) -> None:
    result = run_stage(
        sources=(str(FIXTURES / "corpus_english.jsonl"), str(FIXTURES / "corpus_chinese.csv")), **SMALL
    )
    conversations = result.rows("conversations")
    kinds = Counter(row["kind"] for row in conversations)
    assert kinds["qa"] > 20
    assert kinds["tool"] == 60
    tales = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in conversations}
    chinese = {row["title"]: row["text"] for row in result.rows("documents") if row["language"] == "zh"}
    asked = {
        title: answer
        for title in chinese
        for question, answer in tales.items()
        if question.startswith(f"{title}是什么")
    }
    assert asked
    assert all(chinese[title].startswith(answer) for title, answer in asked.items())
    made = {row["kind"] for row in result.rows("preferences")}
    assert {"wrong_answer", "truncated", "garbled", "repeating"} <= made
    splits = {row["title"]: row["split"] for row in result.rows("documents")}
    held_out = [title for title, split in splits.items() if split == "validation"]
    trained = "\n".join(
        m["content"] for row in conversations if row["split"] == "train" for m in row["messages"]
    )
    assert held_out
    assert not [title for title in held_out if title in trained]


def test_text_without_titles_has_pairs_too(run_stage, tmp_path, english) -> None:
    tales = tmp_path / "tales.jsonl"
    tales.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in english), encoding="utf-8")
    result = run_stage(sources=(str(tales),), **SMALL)
    assert not any(row["kind"] == "qa" for row in result.rows("conversations"))
    assert {row["split"] for row in result.rows("preferences")} == {"train", "validation"}
    events = read_events(result.folder / "work" / "events.jsonl")
    said = [event["message"] for event in events if event.get("level") == "warning"]
    assert any("preference pairs" in message and "title" in message for message in said)


def test_pairs_are_made_where_all_of_the_users_own_go(run_stage, tmp_path, sources, questions) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"prompt": PLANTED, "chosen": "Yes, it does.", "rejected": "No."}) + "\n")
    chosen = tuple(name for name in sources if "preferences" not in name)
    result = run_stage(sources=(*chosen, str(own)), benchmark_sources=questions, **SMALL)
    kinds = {row["kind"] for row in result.rows("preferences")}
    assert kinds and "own" not in kinds


def test_a_language_that_is_no_code_is_refused() -> None:
    with pytest.raises(UserError, match="'english' is no code of a language such as en"):
        SPEC.parse_config({"languages": ("english",)})


def test_documents_are_made_of_conversations_where_there_are_none(run_stage) -> None:
    result = run_stage(sources=(str(FIXTURES / "corpus_dialogues.jsonl"),), **SMALL)
    texts = [row["text"] for row in result.rows("documents")]
    assert any("rain gauge" in text and "straight glass" in text for text in texts)
    assert {
        call["name"] for row in result.rows("scenarios") for call in json.loads(row["expected_calls"])
    } == {"calculator"}


def test_a_tight_limit_is_shared_out_and_small_sources_stay_whole(run_stage, tmp_path, english) -> None:
    words = "lamp river stone apple bridge keeper storm bell light boat garden field".split()  # noqa: SIM905
    large = tmp_path / "large.jsonl"
    with large.open("w", encoding="utf-8") as file:
        for i in range(3000):
            text = " ".join(words[(i * 7 + k * (i % 11 + 1)) % 12] + str(i * k % 97) for k in range(40))
            file.write(json.dumps({"text": text}) + "\n")
    small = str(FIXTURES / "corpus_english.jsonl")
    result = run_stage(sources=(str(large), small), max_megabytes=0.1, near_duplicate_similarity=0, **SMALL)
    kept = Counter(row["source"] for row in result.rows("documents"))
    assert kept["corpus_english.jsonl"] == len(english)
    assert 100 < kept["large.jsonl"] < 1000
    assert 90_000 < result.metrics["num_bytes"] <= 100_000
    steps = {row["step"]: row for row in result.rows("funnel")}
    assert steps["sampled"]["documents_out"] < 1500
    assert steps["size_limit"]["documents_out"] < steps["size_limit"]["documents_in"]
    assert result.rows("rejects") == []


def test_options_of_a_source(run_stage, tmp_path) -> None:
    words = "lamp river stone apple bridge keeper storm bell light boat garden field".split()  # noqa: SIM905
    rng = random.Random(5)
    for name in ("plain", "heavy", "capped"):
        texts = [" ".join(rng.choices(words, k=60)) for _ in range(300)]
        rows = [{"text": text, "license": "MIT"} if name == "plain" else {"text": text} for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "short.jsonl").write_text('{"text": "Hi there."}\n')
    sources = (
        f"{tmp_path}/plain.jsonl",
        f"{tmp_path}/heavy.jsonl;weight=2;licence=CC-BY-4.0",
        f"{tmp_path}/capped.jsonl;max_megabytes=0.002;language=pl",
        f"{tmp_path}/short.jsonl;filters=none",
    )
    result = run_stage(sources=sources, max_megabytes=0.032, **UNLIKE)
    size: Counter[str] = Counter()
    for row in result.rows("documents"):
        size[row["source"]] += row["num_bytes"]
    assert 1_300 < size["capped.jsonl"] <= 2_000
    assert 1.8 < size["heavy.jsonl"] / size["plain.jsonl"] < 2.2
    assert size["short.jsonl"] == len("Hi there.")
    told = {(row["source"], row["licence"], row["language"]) for row in result.rows("documents")}
    assert ("plain.jsonl", "MIT", "en") in told and ("heavy.jsonl", "CC-BY-4.0", "en") in told
    assert ("capped.jsonl", "", "pl") in told
    row = result.rows("documents")[0]
    assert row["origin"] == "plain.jsonl" and row["byte_end"] > row["byte_start"] >= 0


def test_only_some_languages(run_stage, sources) -> None:
    result = run_stage(sources=sources, languages=("zh", "ar"), **SMALL)
    assert {row["language"] for row in result.rows("documents")} == {"zh", "ar"}
    assert Counter(row["reason"] for row in result.rows("rejects"))["other_language"] > 20


def test_records_that_give_questions_away_are_left_out(run_stage, tmp_path, sources, questions) -> None:
    extra = tmp_path / "talk.jsonl"
    rows = [
        {"question": PLANTED, "answer": "Yes, it does."},
        {"prompt": PLANTED, "chosen": "Yes, it does.", "rejected": "No."},
    ]
    extra.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = run_stage(sources=(*sources, str(extra)), benchmark_sources=questions, **SMALL)
    assert Counter(r["step"] for r in result.rows("rejects") if r["reason"] == "benchmark_overlap") == {
        "decontaminated": 1,
        "records": 2,
    }
    assert "talk.jsonl" not in {row["source"] for row in result.rows("conversations")}
    assert "talk.jsonl" not in {row["source"] for row in result.rows("preferences")}


def test_questions_that_are_not_scored_are_kept_out_too(run_stage, tmp_path, sources) -> None:
    others = ("Who winds the clock in the tower on holidays?", "Which of the two bells was cast in Lübeck?")
    asked = [PLANTED, *(f"{other} It was told in the {n}th chapter." for n, other in enumerate(others, 4))]
    rows = [{"question": text, "choices": ["yes", "no"], "answer": 0} for text in asked]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    leaking = [{"text": f"Somebody wrote to us in spring. {text} Nobody has answered."} for text in asked]
    said = [{"question": text, "answer": "Nobody knows."} for text in asked]
    for name, held in (("leaks.jsonl", leaking), ("talk.jsonl", said)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in held), encoding="utf-8")
    mine = (str(tmp_path / "leaks.jsonl"), str(tmp_path / "talk.jsonl"))
    settings = {"benchmark_sources": (str(tmp_path / "bench.jsonl"),), "max_questions_per_source": 1}
    result = run_stage(sources=(*sources, *mine), **settings, **UNLIKE)
    assert sum(row["source"] == "bench.jsonl" for row in result.rows("benchmark")) == 1
    dropped = [row for row in result.rows("rejects") if row["reason"] == "benchmark_overlap"]
    found = Counter((row["step"], row["source"]) for row in dropped)
    assert found["decontaminated", "leaks.jsonl"] == found["records", "talk.jsonl"] == 3
    assert len({row["detail"].split(":")[0] for row in dropped}) == 3


def test_records_keep_what_was_said_and_where_they_are_from(run_stage, tmp_path, sources) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"b": 1, "a": "灯"}'}}
    tool = {"type": "function", "function": {"name": "add", "description": "Adds."}}
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What do one lamp and one more lamp make, if nobody puts them out?"},
        {"role": "assistant", "content": None, "reasoning_content": "A sum.", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
        {"role": "assistant", "content": "<think>Two, then.</think>They make two lamps that burn all night."},
    ]
    again = [*said[:4], {**said[4], "content": said[4]["content"].replace("night.", "night long.")}]
    rows = [{"messages": turns, "tools": [tool], "license": "CC0"} for turns in (said, again, said)]
    rows.append({"prompt": "Why?", "chosen": said[2], "rejected": "No.", "license": "CC0"})
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (tmp_path / "talk.jsonl").write_text("".join(lines), encoding="utf-8")
    result = run_stage(sources=(*sources, str(tmp_path / "talk.jsonl")), **SMALL)
    [row] = [row for row in result.rows("conversations") if row["source"] == "talk.jsonl"]
    assert (row["licence"], row["origin"], json.loads(row["tools"])) == ("CC0", "talk.jsonl", [tool])
    place = lines[0].encode(), "".join(lines).encode()[row["byte_start"] : row["byte_end"]]
    assert place[1].strip() in [line.encode().strip() for line in lines[:2]]
    assert [message["role"] for message in row["messages"]] == [message["role"] for message in said]
    assert row["messages"][2] == {
        "role": "assistant",
        "content": "",
        "reasoning": "A sum.",
        "tool_calls": [{"id": "c1", "name": "add", "arguments": '{"b": 1, "a": "灯"}'}],
        "tool_call_id": "",
        "weight": None,
    }
    assert row["messages"][3]["tool_call_id"] == "c1"
    assert row["messages"][4]["content"].startswith("They make two lamps that burn all night")
    assert row["messages"][4]["reasoning"] == "Two, then."
    [pair] = [row for row in result.rows("preferences") if row["source"] == "talk.jsonl"]
    assert pair["chosen"]["tool_calls"] == row["messages"][2]["tool_calls"]
    assert pair["chosen"]["reasoning"] == "A sum." and pair["rejected"]["content"] == "No."
    dropped = [row for row in result.rows("rejects") if row["source"] == "talk.jsonl"]
    assert {row["reason"] for row in dropped} == {"exact_duplicate", "near_duplicate"}
    assert {(row["licence"], row["origin"]) for row in dropped} == {("CC0", "talk.jsonl")}


def test_few_pairs_are_divided_by_their_prompts(run_stage, tmp_path, sources) -> None:
    answers = ("He rows home.", "Nobody has seen it.", "She rings the bell.", "It rains.")
    asked = {"Who keeps the lamp at night?": answers, "What becomes of old boats?": answers}
    pairs = [
        {"prompt": p, "chosen": "The keeper.", "rejected": r} for p, wrong in asked.items() for r in wrong
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    chosen = tuple(name for name in sources if "preferences" not in name)
    result = run_stage(sources=(*chosen, str(tmp_path / "pairs.jsonl")), **SMALL)
    sides = {(row["prompt"][0]["content"], row["split"]) for row in result.rows("preferences")}
    assert len(sides) == 2 and {split for _, split in sides} == {"train", "validation"}


def test_derived_pairs_keep_tools_and_reasoning(run_stage, tmp_path, sources) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What lies in drawer {number}?"},
                {
                    "role": "assistant",
                    "reasoning": "I put it there.",
                    "content": f"Under the maps lie {number} keys.",
                },
            ],
            "tools": tools,
            "licence": "CC0",
        }
        for number in range(9)
    ]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = tuple(name for name in sources if "preferences" not in name and "dialogues" not in name)
    result = run_stage(sources=(*chosen, str(tmp_path / "talk.jsonl")), **SMALL)
    pairs = result.rows("preferences")
    assert len(pairs) == 36 and {row["licence"] for row in pairs} == {"CC0"}
    sides = {(row["prompt"][0]["content"], row["split"]) for row in pairs}
    assert len(sides) == 9 and {split for _, split in sides} == {"train", "validation"}
    for row in pairs:
        assert json.loads(row["tools"]) == tools
        assert row["chosen"]["reasoning"] == row["rejected"]["reasoning"] == "I put it there."
        assert row["chosen"]["content"].startswith("Under") and row["rejected"] != row["chosen"]


def test_odd_rows_are_rejects_and_do_not_stop_the_build(run_stage, tmp_path, sources) -> None:
    odd = tmp_path / "odd.jsonl"
    odd.write_text(f'{{"text": "{PLANTED}"}}\nnot json\n{{"weather": "fine"}}\n', encoding="utf-8")
    result = run_stage(sources=(*sources, str(odd)), **SMALL)
    reasons = {row["reason"]: row["detail"] for row in result.rows("rejects") if row["source"] == "odd.jsonl"}
    assert reasons == {"bad_json": "line 2", "unknown_fields": "at byte 124"}


def test_benchmark_questions_do_not_become_training_data(run_stage, questions) -> None:
    with pytest.raises(UserError, match="holds benchmark questions") as caught:
        run_stage(sources=questions, **SMALL)
    assert "benchmark_sources" in caught.value.hint


def test_benchmark_rows_without_a_question_are_rejects_with_a_warning(run_stage, tmp_path, sources) -> None:
    path = tmp_path / "bench.jsonl"
    good = json.dumps({"question": PLANTED, "choices": ["yes", "no"], "answer": 0})
    odd = json.dumps({"ctx": "Ask bob@ferry.de how", "endings": None, "label": 0})
    path.write_text(f'{good}\n{odd}\nnot json\n{{"weather": "fine"}}\n', encoding="utf-8")
    result = run_stage(sources=sources, benchmark_sources=(str(path),), **SMALL)
    assert SPEC.writes["rejects"].check(result.parts["rejects"]) == []
    dropped = [row for row in result.rows("rejects") if row["source"] == "bench.jsonl"]
    assert [(row["step"], row["reason"], row["detail"]) for row in dropped] == [
        ("records", "no_question_row", f"at byte {len(good) + 1}"),
        ("records", "bad_json", "line 3"),
        ("records", "no_question_row", f"at byte {len(good) + len(odd) + 11}"),
    ]
    assert "[EMAIL]" in dropped[0]["preview"] and dropped[1]["preview"] == "not json"
    events = read_events(result.folder / "work" / "events.jsonl")
    said = [event["message"] for event in events if event.get("level") == "warning"]
    assert "bench.jsonl: 2 rows are no questions, 1 line is no JSON" in said


def test_a_benchmark_file_that_is_damaged_stops_the_stage_or_is_a_reject(
    run_stage, tmp_path, sources
) -> None:
    (tmp_path / "cut.json").write_text('[{"question": "Wh', encoding="utf-8")
    bad = (str(tmp_path / "cut.json"),)
    with pytest.raises(UserError, match="is no JSON"):
        run_stage(sources=sources, benchmark_sources=bad, **SMALL)
    result = run_stage(sources=sources, benchmark_sources=bad, on_damage="skip", **SMALL)
    assert [row["reason"] for row in result.rows("rejects") if row["source"] == "cut.json"] == ["broken"]
    unanswered = json.dumps({"question": PLANTED, "choices": ["yes", "no"], "answer": None})
    (tmp_path / "idle.jsonl").write_text(f"{unanswered}\nnothing\n", encoding="utf-8")
    with pytest.raises(UserError, match="no benchmark question: 1 row is no question, 1 line is no JSON"):
        run_stage(sources=sources, benchmark_sources=(str(tmp_path / "idle.jsonl"),), **SMALL)


def test_wrong_columns_and_wrong_questions_and_nothing_left(run_stage, tmp_path) -> None:
    path = tmp_path / "wrong.parquet"
    pq.write_table(pa.table({"book": ["b"], "source": ["s"]}), path)
    with pytest.raises(UserError, match="book, source") as caught:
        run_stage(sources=(str(path),), **SMALL)
    assert "text_field" in caught.value.hint
    with pytest.raises(UserError, match="no known multiple-choice form"):
        run_stage(sources=(str(FIXTURES / "corpus_notes.md"),), benchmark_sources=(str(path),), **SMALL)
    (tmp_path / "tiny.txt").write_text("Hi.", encoding="utf-8")
    with pytest.raises(UserError, match="no document that it could keep") as caught:
        run_stage(sources=(str(tmp_path / "tiny.txt"),), **SMALL)
    assert "too_short" in caught.value.hint


@pytest.mark.parametrize("name", ["notes.jsonl", "table.csv"])
def test_a_file_without_rows_is_named(run_stage, tmp_path, name) -> None:
    (tmp_path / name).write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="no document that it could keep") as caught:
        run_stage(sources=(str(tmp_path / name),), **SMALL)
    assert name in caught.value.hint


def test_a_named_field_is_read(run_stage, tmp_path) -> None:
    path = tmp_path / "books.jsonl"
    rows = [{"book": f"Book {i}", "source": f"{PLANTED} Chapter {i} of the long story."} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = run_stage(
        sources=(str(path),), text_field="source", title_field="book", near_duplicate_similarity=0, **SMALL
    )
    assert {row["title"] for row in result.rows("documents")} == {f"Book {i}" for i in range(6)}


def test_each_source_may_name_its_own_field(run_stage, tmp_path) -> None:
    rows = [f"{PLANTED} Chapter {i} of the long story." for i in range(6)]
    pq.write_table(pa.table({"source": [""] * 6, "target": rows}), tmp_path / "pairs.parquet")
    plain = "".join(json.dumps({"text": f"{text} Told once more, elsewhere."}) + "\n" for text in rows)
    (tmp_path / "plain.jsonl").write_text(plain, encoding="utf-8")
    result = run_stage(
        sources=(f"{tmp_path}/pairs.parquet;text_field=target", f"{tmp_path}/plain.jsonl"),
        near_duplicate_similarity=0,
        **SMALL,
    )
    found = Counter(row["source"] for row in result.rows("documents"))
    assert found == {"pairs.parquet": 6, "plain.jsonl": 6}
    with pytest.raises(UserError, match="no field 'target'") as caught:
        run_stage(sources=(f"{tmp_path}/plain.jsonl;text_field=target",), **SMALL)
    assert "PATH;text_field=NAME" in caught.value.hint


def test_a_source_that_does_not_fit_is_named(run_stage, tmp_path) -> None:
    whole = " ".join(f"Day {i}: {PLANTED}" for i in range(40))
    (tmp_path / "big.txt").write_text(whole, encoding="utf-8")
    (tmp_path / "small.txt").write_text(f"{PLANTED} And a small end.", encoding="utf-8")
    limit = {"max_megabytes": len(whole) / 2e6, "near_duplicate_similarity": 0}
    with pytest.raises(UserError, match="no document that it could keep") as caught:
        run_stage(sources=(f"{tmp_path}/big.txt",), **{**SMALL, **limit})
    assert "big.txt: one document is over the limit" in caught.value.hint
    assert "max_megabytes" in caught.value.hint
    result = run_stage(sources=(f"{tmp_path}/big.txt", f"{tmp_path}/small.txt"), **{**SMALL, **limit})
    events = read_events(result.folder / "work" / "events.jsonl")
    warned = [event["message"] for event in events if event.get("level") == "warning"]
    assert any("nothing of big.txt fits" in text for text in warned)
    assert {row["source"] for row in result.rows("documents")} == {"small.txt"}


def test_the_harvest_of_one_package(run_stage) -> None:
    result = run_stage(packages=("packaging",), **SMALL)
    documents = {row["title"]: row for row in result.rows("documents")}
    assert documents["packaging.version.Version"]["kind"] == "class"
    assert {row["source"] for row in documents.values()} == {"packaging"}
    called = {
        call["name"]
        for row in result.rows("conversations")
        for message in row["messages"]
        for call in message["tool_calls"]
    }
    assert called == {"calculator", "lookup", "search"}
    assert {row["task"] for row in result.rows("benchmark")} <= {
        "docs_describe",
        "docs_name",
        "docs_continuation",
    }


def test_what_the_stage_shows(run_stage, sources) -> None:
    result = run_stage(sources=sources, **SMALL)
    events = list(read_events(result.folder / "work" / "events.jsonl"))
    tables = {event["name"]: event for event in events if event["event"] == "table"}
    assert set(tables) == {
        "funnel",
        "rejects",
        "dropped_examples",
        "languages",
        "sources",
        "records",
        "s_curve",
    }
    assert [row[0] for row in tables["funnel"]["rows"]] == list(STEPS)
    assert ["quality", "documentation.too_short", 1, "short"] in tables["rejects"]["rows"]
    (short,) = (row for row in tables["dropped_examples"]["rows"] if row[2] == "short")
    assert short[-1] == "Nothing here." and "visible_characters < 40" in short[4]
    charts = {event["name"]: event for event in events if event["event"] == "chart"}
    assert charts["funnel"]["kind"] == "bar"
    # 28 bands of 4 hashes: 1 - (1 - s^4)^28
    compared = dict(charts["s_curve"]["series"]["compared"])
    assert compared[0.5] == pytest.approx(1 - (1 - 0.5**4) ** 28)
    assert any(event["event"] == "progress" and event["done"] == event["total"] for event in events)


def test_a_missing_file_ends_the_program_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"sources": [str(tmp_path / "missing.parquet")]}), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(SPEC, run, ["--config", str(config), "--output", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "missing.parquet does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_tiny_data_can_be_made_again(tmp_path: Path) -> None:
    script = FIXTURES / "tiny" / "make_tiny.py"
    module = importlib.util.module_from_spec(
        spec := importlib.util.spec_from_file_location("make_tiny", script)
    )
    spec.loader.exec_module(module)
    module.write(tmp_path)
    for name in ("documents.jsonl", "conversations.jsonl", "preferences.jsonl"):
        assert (tmp_path / name).read_bytes() == (FIXTURES / "tiny" / name).read_bytes()


def test_the_tiny_data_gives_every_part(run_stage) -> None:
    settings = {**SMALL, "validation_fraction": 0.15, "num_questions": 40}
    result = run_stage(sources=(str(FIXTURES / "tiny" / "*.jsonl"),), **settings)
    assert all(result.rows(part) for part in SPEC.writes)
    assert result.metrics["num_questions"] >= 20
    assert result.metrics["validation_bytes"] > 10_000
    families = Counter(row["family"] for row in result.rows("scenarios"))
    assert families == dict.fromkeys(("calculator", "lookup", "search", "multi_step", "chat"), 4)


def test_judged_answers_are_preferences_with_one_side_beside_derived_pairs(
    run_stage, tmp_path, sources
) -> None:
    said = [
        {"role": "user", "content": "Where does the keeper put the lamps at dawn?"},
        {"role": "assistant", "content": "In the shed behind the harbour wall."},
    ]
    other = [said[0], {"role": "assistant", "content": "Nobody can say such a thing about any lamp at all."}]
    rows = [{"messages": said, "label": True}, {"messages": other, "label": False}]
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = tuple(name for name in sources if "preferences" not in name)
    result = run_stage(sources=(*chosen, str(tmp_path / "votes.jsonl")), **SMALL)
    pairs = result.rows("preferences")
    own = [row for row in pairs if row["kind"] == "own"]
    assert {(row["chosen"] is None, row["rejected"] is None) for row in own} == {(True, False), (False, True)}
    assert len({row["split"] for row in own}) == 1  # of one prompt
    assert all(row["chosen"] and row["rejected"] for row in pairs if row["kind"] != "own")
    assert len(pairs) > len(own) == 2
    assert "votes.jsonl" not in {row["source"] for row in result.rows("conversations")}
