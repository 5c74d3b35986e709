"""Each form of training data that people have is told by its fields and read in full."""
# ruff: noqa: E501 (one table row per line)

from __future__ import annotations

from typing import Any

import pytest

from stages.corpus_prep.reading.record_forms import (
    Conversation,
    Document,
    Message,
    PreferencePair,
    recognise,
    unknown_form,
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
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}], "label": True},
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
    assert record.messages[1].as_row()["tool_calls"] == (
        '[{"name": "calculator", "arguments": {"expression": "1+1"}}]'
    )


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
    assert _convert(row) == PreferencePair((USER,), "Because.", "No.")


def test_a_dialogue_before_the_pair_is_kept() -> None:
    said = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: "
    pair = _convert({"chosen": said + "Because.", "rejected": said + "No."})
    assert [message.content for message in pair.prompt] == ["Hi", "Hello", "Why?"]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Why?", "output": " "},
        {"messages": [{"role": "user", "content": "Why?"}]},
        {"messages": [], "label": True},
        {
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "label": False,
        },
        {"prompt": "Why?", "chosen": "Same.", "rejected": "Same."},
        {"prompt": "", "chosen": "A", "rejected": "B"},
        {"instruction": "Why?", "output_1": "A", "output_2": "B", "preference": 1.5},
    ],
)
def test_rows_of_a_known_form_that_hold_nothing(row: dict[str, Any]) -> None:
    assert _convert(row) is None


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
