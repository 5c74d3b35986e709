"""Records pass what documents pass, and nothing that is said in them is lost on the way to their rows."""

from __future__ import annotations

import json

import pytest

from stages.corpus_prep.reading.messages import Message
from stages.corpus_prep.reading.record_forms import Conversation, PreferencePair
from stages.corpus_prep.screening.screen_records import (
    duplicate_key,
    judge_record,
    record_fields,
    record_of,
    record_text,
    repaired_record,
)

TOOLS = json.dumps([{"type": "function", "function": {"name": "weather", "description": "itâ€™s"}}])
CALL = {"name": "weather", "arguments": {"city": "MÃ¼nchen", "days": 2}}


def _talk(answer: str = "Sunny.", question: str = "Weather?", **changed: str) -> Conversation:
    said = (
        Message("user", question),
        Message("assistant", "", (CALL,), "Let me\r\nlook."),
        Message("tool", "sun\x00ny"),
        Message("assistant", answer),
    )
    return Conversation(said, changed.get("tools", TOOLS))


def _said(text: str) -> Message:
    return Message("assistant", text)


def test_every_text_is_repaired() -> None:
    record = repaired_record(_talk("Sunny.\u200b  \n"))
    assert isinstance(record, Conversation)
    assert record.messages[1].tool_calls[0]["arguments"] == {"city": "München", "days": 2}
    assert record.messages[1].reasoning == "Let me\nlook."
    assert [message.content for message in record.messages[2:]] == ["sunny", "Sunny."]
    assert "it\u2019s" in record.tools
    assert repaired_record(record) == record
    pair = repaired_record(PreferencePair((Message("user", "a\r\nb"),), _said("x \n"), _said("y\x00")))
    assert pair == PreferencePair((Message("user", "a\nb"),), _said("x"), _said("y"))


def test_duplicates_up_to_case_and_space() -> None:
    assert duplicate_key(_talk("Sunny.")) == duplicate_key(_talk(" sunny.\n"))
    others = [_talk("Rainy."), _talk(question="Why?"), _talk(tools="")]
    assert len({duplicate_key(record) for record in (_talk(), *others)}) == 4
    shuffled = {"arguments": {"days": 2, "city": "MÃ¼nchen"}, "name": "weather"}
    first, call, *rest = _talk().messages
    same = Conversation((first, Message("assistant", "", (shuffled,), call.reasoning), *rest), TOOLS)
    assert duplicate_key(same) == duplicate_key(_talk())
    named = Conversation(
        (first, Message("assistant", "", call.tool_calls, call.reasoning, ("id7",)), *rest), TOOLS
    )
    assert duplicate_key(named) == duplicate_key(_talk())
    pair = PreferencePair((Message("user", "Why?"),), _said("A"), _said("B"))
    assert duplicate_key(pair) != duplicate_key(PreferencePair(pair.prompt, _said("B"), _said("A")))


def test_what_is_said_holds_reasoning_and_calls() -> None:
    text = record_text(_talk())
    assert all(part in text for part in ("Weather?", "look.", "MÃ¼nchen", "Sunny."))
    pair = PreferencePair((Message("user", "Why?"),), _said("Because."), _said("Go away."))
    assert record_text(pair) == "Why?\n\nBecause."


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Yes.", ""),
        ("\ufffd\ufffd lost \ufffd", "broken_characters"),
        ("I like this very much indeed.\n" * 40, "duplicate_lines"),
        ("the cat sat on the mat and the dog sat on the log too " * 30, "repeated_ngrams"),
    ],
)
def test_answers_that_repeat_themselves_are_dropped(answer: str, reason: str) -> None:
    assert judge_record(_talk(answer), "en")[0] == reason
    pair = PreferencePair((Message("user", "Why?"),), _said(answer), _said("B"))
    assert judge_record(pair, "en")[0] == reason


def test_records_pass_through_json_whole() -> None:
    pair = PreferencePair(
        _talk().messages[:3], _said("A"), Message("assistant", "", (CALL,), "Hm", ("7",)), TOOLS
    )
    for record in (_talk(), pair):
        assert record_of(json.loads(json.dumps(record_fields(record)))) == record
