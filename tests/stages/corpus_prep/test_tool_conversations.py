"""Tool conversations: results as the agent gives them, calls that its grammar accepts, arguments apart."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stages.corpus_prep import phrasings
from stages.corpus_prep.entries import Entry, EntryBook, entry_of, of_split
from stages.corpus_prep.question_conversations import question_exchanges, small_talk
from stages.corpus_prep.scenarios import FAMILIES, make_scenarios
from stages.corpus_prep.tool_conversations import WEIGHTS, ToolTask, ToolTaskMaker, tool_tasks
from stages.whitebox import arithmetic_requests
from stages.whitebox.argument_forms import Arithmetic, IdentifierPath, JsonText
from stages.whitebox.arithmetic_requests import PREFIXES, Phrasings
from stages.whitebox.tool_results import calculate, lookup_result, search_result

THINGS = ("apple", "bird", "boat", "gate", "lamp", "map", "path", "well")
VERBS = ("count", "find", "merge", "paint", "split", "store")


def _rows() -> list[dict[str, Any]]:
    return [
        {
            "doc_id": f"{number:024x}",
            "source": "garden",
            "title": f"garden.{thing}.{verb}",
            "kind": "function",
            "language": "en",
            "text": f"# garden.{thing}.{verb}\n\n```python\n{verb}({thing}, number={number})\n```\n\n"
            f"{verb.title()} every old {thing} of the garden. More text.",
        }
        for number, (thing, verb) in enumerate((t, v) for t in THINGS for v in VERBS)
    ]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {row["title"]: row["text"] for row in _rows()}


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    found = [entry_of(row, "validation" if i % 8 == 0 else "train") for i, row in enumerate(_rows())]
    return [entry for entry in found if entry is not None]


@pytest.fixture(scope="module")
def tasks(entries: list[Entry]) -> list[ToolTask]:
    return list(tool_tasks(ToolTaskMaker(entries, "seed"), 400))


def test_the_wanted_number_in_the_wanted_shares(tasks: list[ToolTask]) -> None:
    assert len(tasks) == 400
    assert len({task.prompt for task in tasks}) == 400
    share = sum(task.family == "calculator" for task in tasks) / 400
    assert abs(share - WEIGHTS["calculator"] / sum(WEIGHTS.values())) < 0.08
    assert {task.family for task in tasks} == set(FAMILIES) - {"chat"}


def test_results_are_what_the_tools_answer(tasks: list[ToolTask], texts: dict[str, str]) -> None:
    for task in tasks:
        for call, result in zip(task.calls, task.results, strict=True):
            argument = next(iter(call["arguments"].values()))
            if call["name"] == "calculator":
                assert result == calculate(argument)
            elif call["name"] == "lookup":
                assert result == lookup_result(argument, texts[argument])
            else:
                assert result == search_result(task.title, texts[task.title])
            assert len(result.split()) <= 40
        assert task.expected in task.answer
        assert task.results[-1] in task.answer


def test_arguments_stand_in_the_request_or_in_an_earlier_result(tasks: list[ToolTask]) -> None:
    for task in tasks:
        known = task.prompt
        for call, result in zip(task.calls, task.results, strict=True):
            argument = next(iter(call["arguments"].values()))
            digits = argument.split("+")[0].split("*")[0] if argument not in known else argument
            assert digits.rstrip("-0123456789") == "" or argument in known
            known += " " + result


def _accepts(form: Any, text: str) -> bool:
    state = form.start
    for byte in text.encode():
        state = form.advance(state, byte)
        if state is None:
            return False
    return form.closing(state) == b""


def test_the_agents_grammar_can_write_every_call(tasks: list[ToolTask]) -> None:
    forms = {
        "calculator": (Arithmetic(), 64),
        "lookup": (IdentifierPath(), 96),
        "search": (JsonText(trimmed=True), 120),
    }
    for task in tasks:
        for call in task.calls:
            form, limit = forms[call["name"]]
            argument = next(iter(call["arguments"].values()))
            assert _accepts(form, json.dumps(argument)[1:-1]), argument
            assert len(argument.encode()) <= limit


def test_a_conversation_goes_request_call_result_answer(tasks: list[ToolTask]) -> None:
    for task in tasks[:50]:
        messages = task.messages()
        assert [m.role for m in messages] == ["user", *["assistant", "tool"] * len(task.calls), "assistant"]
        assert all(bool(m.tool_calls) == (m.role == "assistant" and not m.content) for m in messages)
        [called] = messages[1].as_row()["tool_calls"]
        assert {**called, "arguments": json.loads(called["arguments"])} == {"id": "", **task.calls[0]}


def test_the_second_step_uses_the_result_of_the_first(entries: list[Entry]) -> None:
    maker = ToolTaskMaker(entries, "chain")
    for _ in range(30):
        task = maker.then_calculate()
        assert task is not None
        assert task.calls[1]["arguments"]["expression"].startswith(task.results[0])
        found = maker.search_then_lookup()
        assert found is not None
        assert found.results[0].startswith(found.calls[1]["arguments"]["symbol"] + ": ")


def test_the_same_seed_draws_the_same_tasks(entries: list[Entry], tasks: list[ToolTask]) -> None:
    assert list(tool_tasks(ToolTaskMaker(entries, "seed"), 400)) == tasks
    assert list(tool_tasks(ToolTaskMaker(entries, "other"), 400)) != tasks


def test_without_documents_there_are_calculations() -> None:
    tasks = list(tool_tasks(ToolTaskMaker([], "seed"), 50))
    assert len(tasks) == 50
    assert {call["name"] for task in tasks for call in task.calls} == {"calculator"}


def test_scenarios_share_no_argument_with_training(entries: list[Entry]) -> None:
    scenarios = make_scenarios(of_split(entries, "train"), 10, seed=0)
    maker = ToolTaskMaker(of_split(entries, "train"), "tools", reserved=scenarios.reserved)
    training = set().union(*(task.uses() for task in tool_tasks(maker, 300)))
    expected = {
        str(value)
        for row in scenarios.rows
        for call in json.loads(row["expected_calls"])
        for value in call["arguments"].values()
    }
    assert len(expected) >= 16
    assert not expected & training
    asked = {exchange.question for exchange in question_exchanges(entries, 200, 0, scenarios.reserved)}
    assert not [title for title in expected for question in asked if f" {title}" in question and "." in title]


def test_scenarios_cover_families_and_both_phrasings(entries: list[Entry]) -> None:
    rows = make_scenarios(entries, 10, seed=0).rows
    assert [row["phrasing"] for row in rows] == ["seen"] * 10 + ["unseen"] * 10
    assert {row["family"] for row in rows} == set(FAMILIES)
    assert len({row["scenario_id"] for row in rows}) == 20
    for row in rows:
        assert (row["family"] == "chat") == (row["expected_calls"] == "[]")
    assert make_scenarios(entries, 10, seed=0).rows == rows
    assert make_scenarios(entries, 10, seed=1).rows != rows


def _families() -> dict[str, Phrasings]:
    known = vars(phrasings) | vars(arithmetic_requests)
    return {name: value for name, value in known.items() if isinstance(value, Phrasings)}


def test_phrasings_are_many_and_unseen_ones_are_never_trained(
    tasks: list[ToolTask], entries: list[Entry]
) -> None:
    for name, family in _families().items():
        assert len(family.unseen) >= 2, name
        assert not {*family.seen, *family.rewarded} & set(family.unseen), name
    for family in (arithmetic_requests.CALCULATOR, phrasings.LOOKUP, phrasings.SEARCH):
        assert len(family.seen) >= 8
    unseen_openings = {
        t.split("{")[0] for f in _families().values() for t in f.unseen if len(t.split("{")[0]) > 12
    }
    seen_openings = {t.split("{")[0] for f in _families().values() for t in f.seen}
    prompts = [task.prompt for task in tasks]
    prompts += [exchange.question for exchange in question_exchanges(entries, 100, 0, frozenset())]
    for opening in unseen_openings - seen_openings:
        assert not [p for p in prompts if any(p.startswith(prefix + opening) for prefix in PREFIXES)], opening


def test_small_talk_leaves_the_last_request_to_scenarios() -> None:
    questions = {exchange.question for exchange in small_talk()}
    for requests, _ in phrasings.SMALL_TALK:
        assert requests[0] in questions
        assert requests[-1] not in questions
    assert all(exchange.entry is None for exchange in small_talk())


def test_questions_are_answered_with_sentence_or_signature(entries: list[Entry]) -> None:
    exchanges = list(question_exchanges(entries, 60, 0, frozenset({entries[3].title})))
    assert len(exchanges) == 60
    assert len({exchange.question for exchange in exchanges}) == 60
    for exchange in exchanges:
        assert exchange.entry is not None
        assert exchange.entry.title in exchange.question
        assert exchange.answer in (exchange.entry.sentence, exchange.entry.signature)
        assert exchange.entry.title != entries[3].title
    assert len({exchange.answer.startswith(VERBS) for exchange in exchanges}) == 2


def test_a_book_takes_what_makes_an_entry() -> None:
    book = EntryBook()
    first, second, third = _rows()[:3]
    for row in (first, {**second, "title": ""}, third):
        book.add(row, "train")
    other = EntryBook()
    other.merge(book.as_json())
    assert [entry.title for entry in other.entries()] == [first["title"], third["title"]]
    assert [entry.title for entry in other.entries(without={third["doc_id"]})] == [first["title"]]
    assert entry_of({**first, "title": ""}, "train") is None
    assert entry_of({**first, "text": "# only a heading"}, "train") is None
