"""Each form of training data that people have is told by its fields and read in full."""
# ruff: noqa: E501 (one table row per line)

from __future__ import annotations

import json
from typing import Any

import pytest

from stages.corpus_prep.reading.messages import REASONS, Message
from stages.corpus_prep.reading.record_forms import (
    Conversation,
    Document,
    PreferencePair,
    Refused,
    recognise,
    unknown_form,
)
from stages.corpus_prep.record_rows import record_id
from stages.corpus_prep.screening.screen_records import (
    duplicate_key,
    record_fields,
    record_of,
    record_text,
    with_texts,
)

USER, BOT = Message("user", "Why?"), Message("assistant", "Because.")
HH = "\n\nHuman: Why?\n\nAssistant: "


def _convert(row: dict[str, Any]) -> Any:
    form = recognise(row)
    assert form is not None
    return form.convert(row)


@pytest.mark.parametrize(
    ("row", "document"),
    [
        ({"text": "words"}, Document("", "words")),
        ({"title": " A\nB ", "text": "words", "id": 1}, Document("A B", "words")),
        ({"content": "words", "path": "a/b.md"}, Document("a/b.md", "words")),
        ({"paragraphs": ["one", "two"], "title": None}, Document("", "one\ntwo")),
        ({"text": "def f", "kind": "function", "title": "m.f"}, Document("m.f", "def f", "function")),
        ({"text": "x", "kind": "poem"}, Document("", "x", "text")),
    ],
)
def test_documents(row: dict[str, Any], document: Document) -> None:
    assert _convert(row) == document


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Why?", "input": "", "output": "Because."},
        {"instruction": "Why?", "output": "Because."},
        {"question": "Why?", "answer": "Because."},
        {"question": "Why?", "std_answer": "Because.", "class": "x"},
        {"prompt": "Why?", "response": "Because."},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "value": "Why?"}]}, {"role": "assistant", "content": [{"type": "text", "text": "Because."}]}]},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
        {"conversations": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}, {"role": "user", "content": "And?"}]},
        {"id": "s", "instruction": "Why?", "instances": [{"input": "", "output": "Because."}]},
    ],
)  # fmt: skip
def test_conversations(row: dict[str, Any]) -> None:
    assert _convert(row) == Conversation((USER, BOT))


def test_an_input_stands_below_its_instruction() -> None:
    record = _convert({"instruction": "Translate.", "input": "Hallo", "output": "Hello"})
    assert record.messages[0].content == "Translate.\nHallo"


def test_tool_calls_in_three_spellings() -> None:
    call = {"name": "calculator", "arguments": {"expression": "1+1"}}
    openai = [{"type": "function", "function": {"name": "calculator", "arguments": '{"expression": "1+1"}'}}]
    for spelling in ([call], openai, '[{"name": "calculator", "arguments": {"expression": "1+1"}}]'):
        record = _convert(
            {
                "messages": [
                    {"role": "user", "content": "1+1?"},
                    {"role": "assistant", "content": None, "tool_calls": spelling},
                    {"role": "tool", "content": "2"},
                    {"role": "assistant", "content": "2."},
                ]
            }
        )
        assert record.messages[1] == Message("assistant", "", (call,))
        assert [message.role for message in record.messages] == ["user", "assistant", "tool", "assistant"]
    [row] = record.messages[1].as_row()["tool_calls"]
    assert row == {"id": "", "name": "calculator", "arguments": '{"expression": "1+1"}'}


def test_ids_of_calls_and_results_are_kept() -> None:
    calls = [{"name": "add", "arguments": "{}"}, {"id": "b", "function": {"name": "add", "arguments": {}}}]
    said = [ASK, {"role": "assistant", "content": "", "tool_calls": calls}]
    said += [{"role": "assistant", "tool_calls": [{"id": 3, "name": "add"}]}]
    said += [{**RESULT, "tool_call_id": "b"}, RESULT, SAY]
    rows = [message.as_row() for message in _convert({"messages": said}).messages]
    assert [call["id"] for call in rows[1]["tool_calls"]] == ["", "b", "3"]
    assert [row["tool_call_id"] for row in rows] == ["", "", "b", "", ""]
    part = {"type": "tool_use", "id": "t", "name": "add", "input": {"a": 1}}
    used = _convert({"messages": [ASK, {"role": "assistant", "content": [part]}, RESULT, SAY]}).messages[1]
    assert (used.call_ids, used.tool_calls) == (("t",), ({"name": "add", "arguments": {"a": 1}},))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {"instruction": "Why?", "input": "", "output": "Because.", "chosen": "Because.", "rejected": "No."},
        {"question": "Why?", "chosen": "Because.", "rejected": "No."},
        {"conversations": [{"from": "human", "value": "Why?"}], "chosen": {"from": "gpt", "value": "Because."}, "rejected": {"from": "gpt", "value": "No."}},
        {"prompt": [{"role": "user", "content": "Why?"}], "chosen": [{"role": "assistant", "content": "Because."}], "rejected": [{"role": "assistant", "content": "No."}]},
        {"chosen": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}], "rejected": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}]},
        {"chosen": HH + "Because.", "rejected": HH + "No."},
        {"instruction": "Why?", "output_1": "No.", "output_2": "Because.", "preference": 1.9},
        {"input": "Why?", "output_1": "Because.", "output_2": "No.", "label": 1, "subset": "x"},
    ],
)  # fmt: skip
def test_preference_pairs(row: dict[str, Any]) -> None:
    assert _convert(row) == PreferencePair((USER,), BOT, Message("assistant", "No."))


def test_answers_of_a_pair_may_think_and_call() -> None:
    thought = {"role": "assistant", "content": "<think>Hm.</think>Because."}
    pair = _convert({"prompt": "Why?", "chosen": [thought], "rejected": "<think>Eh.</think>Because."})
    assert pair.chosen == Message("assistant", "Because.", reasoning="Hm.")
    assert pair.rejected == Message("assistant", "Because.", reasoning="Eh.")
    tools = [{"name": "add"}]
    made_up = {"role": "assistant", "tool_calls": [{"id": "x", "name": "sum", "arguments": "{}"}]}
    called = _convert({"prompt": "Why?", "chosen": CALL, "rejected": made_up, "tools": tools})
    assert [answer.tool_calls[0]["name"] for answer in (called.chosen, called.rejected)] == ["add", "sum"]
    same = {**CALL, "tool_calls": [{"id": "x", "name": "add", "arguments": "{}"}]}
    assert _convert({"prompt": "Why?", "chosen": CALL, "rejected": same}).reason == "same_answers"


def test_a_dialogue_before_the_pair_is_kept() -> None:
    said = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: "
    pair = _convert({"chosen": said + "Because.", "rejected": said + "No."})
    assert [message.content for message in pair.prompt] == ["Hi", "Hello", "Why?"]


ASK = {"role": "user", "content": "Why?"}
SAY = {"role": "assistant", "content": "Because."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "add", "arguments": "{}"}]}
RESULT = {"role": "tool", "content": "3"}


def _calls(*ids: str) -> dict[str, Any]:
    calls = [{"id": of, "name": "add", "arguments": {"of": number}} for number, of in enumerate(ids)]
    return {"role": "assistant", "tool_calls": calls}


def _result(of: str, said: str = "3") -> dict[str, Any]:
    return {"role": "tool", "content": said, "tool_call_id": of}


@pytest.mark.parametrize(
    ("asked", "given", "kept"),
    [
        ("abc", "cab", "abc"),
        ("abc", "ca", "ac"),
        ("aa", "aa", "aa"),
        ("abc", ["c", "", "a"], ["c", "", "a"]),
        (["a", ""], ["x", "a"], ["x", "a"]),
        (["", ""], "ba", "ba"),
    ],
)
def test_results_stand_in_the_order_of_their_calls(asked: Any, given: Any, kept: Any) -> None:
    first, second = _calls(*asked), [_result(of, f"result {of}") for of in given]
    said = [ASK, first, *second, _calls("z"), _result("z", "last"), SAY]
    pair = _convert({"prompt": [*said, ASK], "chosen": "A", "rejected": "B"})
    for messages in (_convert({"messages": said}).messages, pair.prompt):
        found = [message.content for message in messages if message.role == "tool"]
        assert found == [*(f"result {of}".strip() for of in kept), "last"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "Why?", "output": " "}, "empty_answer"),
        ({"instruction": " ", "output": "Because."}, "no_question"),
        ({"messages": [ASK]}, "empty_answer"),
        ({"messages": [], "label": True}, "empty_answer"),
        ({"messages": None}, "bad_messages"),
        ({"messages": ["hello"]}, "bad_messages"),
        ({"messages": [SAY], "label": False}, "roles_out_of_order"),
        ({"prompt": "Why?", "completion": " ", "label": False}, "empty_answer"),
        ({"messages": [ASK, SAY, SAY]}, "roles_out_of_order"),
        ({"messages": [ASK, ASK, SAY]}, "roles_out_of_order"),
        ({"messages": [SAY, ASK, SAY]}, "roles_out_of_order"),
        ({"messages": [ASK, SAY, {"role": "system", "content": "Be brief."}, ASK, SAY]}, "roles_out_of_order"),
        ({"messages": [ASK, {"role": "wizard", "content": "Abracadabra"}, SAY]}, "unknown_role"),
        ({"messages": [ASK, RESULT, SAY]}, "result_without_call"),
        ({"messages": [ASK, CALL, RESULT, RESULT, SAY]}, "result_without_call"),
        ({"messages": [ASK, _calls("a"), _result("b"), SAY]}, "result_without_call"),
        ({"messages": [ASK, _calls("a", "b"), _result("a"), _result("a"), SAY]}, "result_without_call"),
        ({"messages": [ASK, _calls("a"), RESULT, _calls("b"), _result("a"), SAY]}, "result_without_call"),
        ({"prompt": [ASK, _calls("a"), _result("b")], "chosen": "A", "rejected": "B"}, "result_without_call"),
        ({"messages": [ASK, CALL, ASK, SAY]}, "call_without_result"),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "function_call", "value": "add(1, 2)"}]}, "bad_arguments"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [{"name": "add", "arguments": "1, 2"}]}]}, "bad_arguments"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [{"name": "add", "arguments": "[1, 2]"}]}]}, "bad_arguments"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [{"arguments": "{}"}]}]}, "bad_arguments"),
        ({"messages": [ASK, {**SAY, "loss_weight": -1.0}]}, "bad_weight"),
        ({"messages": [ASK, {**SAY, "train": "maybe"}]}, "bad_weight"),
        ({"messages": [ASK, SAY], "tools": "add, subtract"}, "bad_tools"),
        ({"messages": [ASK, SAY], "tools": [{"description": "adds"}]}, "bad_tools"),
        ({"messages": [ASK, CALL], "tools": [{"name": "subtract"}]}, "undeclared_tool"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, SAY]}, "unsupported_content"),
        ({"prompt": "Why?", "chosen": "Same.", "rejected": "Same. "}, "same_answers"),
        ({"prompt": "", "chosen": "A", "rejected": "B"}, "no_question"),
        ({"prompt": "Why?", "chosen": "", "rejected": "B"}, "empty_answer"),
        ({"prompt": "Why?", "chosen": CALL, "rejected": SAY, "tools": [{"name": "sum"}]}, "undeclared_tool"),
        ({"chosen": HH + "Yes.", "rejected": HH + "Yes.\n\nHuman: So?\n\nAssistant: No."}, "different_prompts"),
        ({"instruction": "Why?", "output_1": "A", "output_2": "B", "preference": 1.5}, "no_preference"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_taken_say_why(row: dict[str, Any], reason: str) -> None:
    refused = _convert(row)
    assert isinstance(refused, Refused)
    assert refused.reason == reason
    assert reason in REASONS


def test_every_reason_has_a_row_above() -> None:
    marks = test_rows_that_cannot_be_taken_say_why.pytestmark  # type: ignore[attr-defined]
    assert {reason for _, reason in marks[0].args[1]} == set(REASONS)


TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "default": None}}
KEPT_TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    "tools", [[TOOL], json.dumps([TOOL]), [{"type": "function", "function": TOOL}], TOOL]
)
def test_tools_in_four_spellings(tools: Any) -> None:
    record = _convert({"messages": [ASK, CALL, RESULT, SAY], "tools": tools})
    assert json.loads(record.tools) == [{"type": "function", "function": KEPT_TOOL}]


@pytest.mark.parametrize(
    "said",
    [
        {"content": "Because.", "reasoning_content": "Hm."},
        {"content": "<think>\nHm.\n</think>\n\nBecause."},
        {"content": [{"type": "reasoning", "value": "Hm."}, {"type": "text", "value": "Because."}]},
        {"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Because."}]},
    ],
)
def test_reasoning_in_four_spellings(said: dict[str, Any]) -> None:
    answer = _convert({"messages": [ASK, {"role": "assistant", **said}]}).messages[1]
    assert answer == Message("assistant", "Because.", reasoning="Hm.")
    told = {"role": "assistant", "content": "Because.", "reasoning": "Hm."}
    assert answer.as_row() == {**told, "tool_calls": [], "tool_call_id": "", "weight": None}


@pytest.mark.parametrize(
    ("said", "weight"),
    [({"loss_weight": 0.0}, 0.0), ({"weight": 2}, 2.0), ({"train": False}, 0.0), ({"train": True}, None)],
)
def test_turns_may_say_how_much_they_count(said: dict[str, Any], weight: float | None) -> None:
    asked, answered = _convert({"messages": [{**ASK, "loss_weight": 0.0}, {**SAY, **said}]}).messages
    assert (asked.weight, answered.weight) == (None, weight)
    assert answered.as_row()["weight"] == weight


def test_words_and_the_call_behind_them_are_one_turn() -> None:
    said = [("human", "1+2?"), ("gpt", "Let me see."), ("function_call", '{"name": "add", "arguments": {"a": 1}}'),
            ("function_call", '{"name": "add", "arguments": {"a": 2}}'), ("observation", "3"), ("gpt", "3.")]  # fmt: skip
    record = _convert({"conversations": [{"from": who, "value": what} for who, what in said]})
    assert [message.role for message in record.messages] == ["user", "assistant", "tool", "assistant"]
    assert record.messages[1].content == "Let me see."
    assert [call["arguments"] for call in record.messages[1].tool_calls] == [{"a": 1}, {"a": 2}]


def test_system_prompts_and_history_stand_in_fields_of_their_own() -> None:
    row = {"instruction": "And?", "output": "So.", "system": "Be brief.", "history": [["Why?", "Because."]]}
    messages = _convert(row).messages
    assert [message.content for message in messages] == ["Be brief.", "Why?", "Because.", "And?", "So."]
    assert messages[0].role == "system"
    pair = _convert({"prompt": "Why?", "chosen": "A", "rejected": "B", "system": "Be brief."})
    assert [message.role for message in pair.prompt] == ["system", "user"]


def test_messages_as_json_text() -> None:
    assert _convert({"messages": json.dumps([ASK, SAY])}) == Conversation((USER, BOT))


def test_a_named_field_counts_before_every_form() -> None:
    row = {"question": "Why?", "answer": "Because.", "story": "Long ago."}
    form = recognise(row, text_field="answer", title_field="question")
    assert form is not None
    assert form.convert(row) == Document("Why?", "Because.")
    assert recognise(row, text_field="missing") is None


def test_unknown_fields_are_listed_with_the_way_out() -> None:
    row = {"book": "b", "source": "s"}
    assert recognise(row) is None
    error = unknown_form("a.parquet", row, "")
    assert "book, source" in error.message
    assert "--set corpus_prep.text_field=NAME" in error.hint
    assert "instruction" in error.hint
    assert "has no field 'txt'; its fields are: book, source" in unknown_form("a", row, "txt").message


@pytest.mark.parametrize(
    "form", [{"messages": [ASK, SAY]}, {"prompt": ASK["content"], "completion": SAY["content"]}]
)
@pytest.mark.parametrize("is_good", [True, False])
def test_a_judged_answer_is_one_side_of_a_pair(form: dict[str, Any], is_good: bool) -> None:
    record = _convert({**form, "label": is_good})
    assert [message.content for message in record.prompt] == [ASK["content"]]
    assert record.side == ("chosen" if is_good else "rejected")
    assert [answer.content for answer in record.answers] == [SAY["content"]]
    assert (record.chosen is None, record.rejected is None) == (not is_good, is_good)
    assert record_of(json.loads(json.dumps(record_fields(record)))) == record
    assert with_texts(record, str.upper).answers[0].content == SAY["content"].upper()


def test_the_same_answer_judged_good_and_bad_is_two_records() -> None:
    good, bad = (_convert({"messages": [ASK, SAY], "label": label}) for label in (True, False))
    assert duplicate_key(good) != duplicate_key(bad)
    assert record_id(good) != record_id(bad)
    assert SAY["content"] in record_text(good) and SAY["content"] not in record_text(bad)


def test_a_label_that_is_no_verdict_leaves_a_conversation() -> None:
    assert isinstance(_convert({"messages": [ASK, SAY], "label": 3}), Conversation)
