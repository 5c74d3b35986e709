"""What a row of the user's data is: a document, a conversation or a preference pair, told by its fields.

Rows are recognised one by one, so a file may mix forms. `recognise` names the form; `convert` gives the
record, or a `Refused` with a reason for a row of a known form that cannot be taken (an empty answer, turns
out of order, arguments that are no JSON).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stages.corpus_prep.reading.messages import (
    Malformed,
    Message,
    check_order,
    in_call_order,
    is_dialogue,
    messages_of,
    text_of,
    tools_of,
)
from stages.runtime.errors import UserError

Row = Mapping[str, Any]

TEXT_FIELDS = ("text", "content", "body", "document", "article", "paragraphs", "markdown", "code", "story")
TITLE_FIELDS = ("title", "name", "heading", "headline", "path", "file")
MESSAGE_FIELDS = ("messages", "conversations", "conversation", "dialog", "dialogue")
QUESTION_FIELDS = ("question", "prompt", "query", "problem")
TOOL_FIELDS = ("tools", "functions")
ANSWER_FIELDS = ("answer", "response", "output", "completion", "std_answer", "solution")

KINDS = ("module", "class", "function", "text")

NAMING = "--set corpus_prep.text_field=NAME, or for one source PATH;text_field=NAME"
RECOGNISED = (
    "text [title]; instruction [input] output; question answer; prompt response; "
    "messages or conversations (role/content or from/value); prompt chosen rejected; "
    "instruction [input] chosen rejected; conversations chosen rejected; chosen rejected (whole dialogues); "
    "any conversation with a label that is true or false"
)


@dataclass(frozen=True)
class Document:
    """A text with its title ("" if it has none) and its kind, one of `KINDS`."""

    title: str
    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Conversation:
    """Messages that end with an assistant's. tools: a JSON list of the functions on offer, or ""."""

    messages: tuple[Message, ...]
    tools: str = ""


@dataclass(frozen=True)
class PreferencePair:
    """Messages that end with a user's or a tool's, and two of an assistant's. tools: as in `Conversation`.

    One of the answers is None where a single one was judged: as good (chosen) or as bad (rejected).
    """

    prompt: tuple[Message, ...]
    chosen: Message | None
    rejected: Message | None
    tools: str = ""

    @property
    def answers(self) -> tuple[Message, ...]:
        """Those that there are, the chosen one first."""
        return tuple(answer for answer in (self.chosen, self.rejected) if answer is not None)

    @property
    def side(self) -> str:
        """`pair`, or which of the two answers there is."""
        return "pair" if len(self.answers) == 2 else "chosen" if self.chosen is not None else "rejected"


@dataclass(frozen=True)
class Refused:
    """A row of a known form that was not taken: a key of `messages.REASONS`, and what exactly was found."""

    reason: str
    detail: str = ""


Record = Document | Conversation | PreferencePair


@dataclass(frozen=True)
class Form:
    """A recognised form: what its rows become, and how."""

    name: str
    kind: str
    build: Callable[[Row], Record]

    def convert(self, row: Row) -> Record | Refused:
        """The record of a row of this form."""
        try:
            return self.build(row)
        except Malformed as verdict:
            return Refused(verdict.reason, verdict.detail)


def recognise(row: Row, text_field: str = "", title_field: str = "") -> Form | None:
    """The form of a row, told by which fields it has; None where it is none that we know."""
    if text_field:
        form = Form(text_field, "document", lambda r: _document(r, text_field, title_field))
        return form if text_field in row else None
    return _pair_form(row) or _judged_form(row) or _conversation_form(row) or _document_form(row, title_field)


def unknown_form(where: str, row: Row, text_field: str) -> UserError:
    """The error for a row that `recognise` does not know."""
    columns = ", ".join(row) or "none"
    if text_field:
        return UserError(
            f"{where} has no field {text_field!r}; its fields are: {columns}",
            hint=f"name one of them: {NAMING}",
        )
    return UserError(
        f"{where} has fields that are of no known form: {columns}",
        hint=f"recognised: {RECOGNISED}; or name the text: {NAMING}",
    )


def _first(row: Row, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in row), None)


def _document_form(row: Row, title_field: str) -> Form | None:
    name = _first(row, TEXT_FIELDS)
    return Form(name, "document", lambda r: _document(r, name, title_field)) if name else None


def _document(row: Row, text_field: str, title_field: str) -> Document:
    text = text_of(row.get(text_field))
    title_name = title_field or _first(row, TITLE_FIELDS) or ""
    title = " ".join(text_of(row.get(title_name)).split())[:200] if title_name != text_field else ""
    kind = row.get("kind")
    return Document(title, text, kind if kind in KINDS else "text")


def _conversation_form(row: Row) -> Form | None:
    if messages := _first(row, MESSAGE_FIELDS) or "":
        return Form(messages, "conversation", lambda r: _dialogue(r, messages))
    if "instruction" in row and "instances" in row:
        return Form("instruction/instances", "conversation", _seed_task)
    question, answer = _first(row, QUESTION_FIELDS) or "", _first(row, ANSWER_FIELDS) or ""
    if "instruction" in row and answer:
        name = f"instruction/{answer}"
        return Form(name, "conversation", lambda r: _exchange(r, instruction_of(r), r[answer]))
    if not question or not answer:
        return None
    return Form(f"{question}/{answer}", "conversation", lambda r: _exchange(r, r[question], r[answer]))


def instruction_of(row: Row) -> str:
    """The instruction, with its input below it where there is one."""
    instruction, given = text_of(row.get("instruction")).strip(), text_of(row.get("input")).strip()
    return f"{instruction}\n{given}" if given and given not in instruction else instruction


def _exchange(row: Row, question: Any, answer: Any) -> Conversation:
    """A question and its answer, behind the turns of `history`; TRL also gives both as lists of messages."""
    asked = messages_of(question) if isinstance(question, list) else [_turn("user", question)]
    answered = messages_of(answer) if isinstance(answer, list) else [_turn("assistant", answer)]
    return _conversation(row, [*_history(row), *asked, *answered])


def _turn(role: str, said: Any) -> Message:
    return messages_of([{"role": role, "content": said}])[0]


def _history(row: Row) -> list[Message]:
    """Earlier questions and answers, [[question, answer], ...], as LLaMA-Factory has them."""
    turns = row.get("history")
    if not isinstance(turns, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        return []
    return [
        _turn(role, said) for turn in turns for role, said in zip(("user", "assistant"), turn, strict=True)
    ]


def _seed_task(row: Row) -> Conversation:
    instance = (row["instances"] or [{}])[0]
    question = instruction_of({"instruction": row["instruction"], "input": instance.get("input")})
    return _exchange({}, question, instance.get("output"))


def _dialogue(row: Row, name: str) -> Conversation:
    return _conversation(row, messages_of(row[name]))


def _conversation(row: Row, messages: list[Message]) -> Conversation:
    """The turns up to the last answer, checked. Questions after it, which nobody answered, are left out."""
    messages, tools = _opened(row, messages), tools_of(_first_value(row, TOOL_FIELDS))
    while messages and messages[-1].role != "assistant":
        messages.pop()
    if not messages:
        raise Malformed("empty_answer", "no answer")
    check_order(messages, tools)
    return Conversation(tuple(in_call_order(messages)), tools)


def _opened(row: Row, messages: list[Message]) -> list[Message]:
    """Messages behind the system prompt that stands in a field of its own."""
    said = text_of(row.get("system")).strip()
    return (
        [Message("system", said), *messages]
        if said and messages[:1] != [Message("system", said)]
        else messages
    )


def _first_value(row: Row, names: tuple[str, ...]) -> Any:
    name = _first(row, names)
    return row[name] if name else None


def _pair_form(row: Row) -> Form | None:
    if "chosen" in row and "rejected" in row:
        asked = _first(row, ("prompt", *MESSAGE_FIELDS, "instruction", *QUESTION_FIELDS))
        name = f"{asked}/chosen/rejected" if asked else "chosen/rejected"
        return Form(name, "preference", lambda r: _chosen_rejected(r, asked))
    if "output_1" in row and "output_2" in row and _first(row, ("preference", "label")):
        return Form("output_1/output_2", "preference", _judged_outputs)
    return None


def _judged_form(row: Row) -> Form | None:
    """KTO's data: a conversation whose last answer is good (label true) or bad (false)."""
    form = _conversation_form(row) if isinstance(row.get("label"), bool) else None
    if form is None:
        return None
    return Form(f"{form.name}/label", "preference", lambda r: _judged(form.build(r), r["label"]))


def _judged(record: Record, is_good: bool) -> PreferencePair:
    assert isinstance(record, Conversation)
    *prompt, answer = record.messages
    if not prompt or prompt[-1].role == "system":
        raise Malformed("no_question")
    if answer.says_nothing:
        raise Malformed("empty_answer", "the judged one")
    chosen, rejected = (answer, None) if is_good else (None, answer)
    return PreferencePair(tuple(prompt), chosen, rejected, record.tools)


def _chosen_rejected(row: Row, asked: str | None) -> PreferencePair:
    chosen, rejected = _answer_messages(row["chosen"]), _answer_messages(row["rejected"])
    if asked == "instruction":
        prompt = [*_history(row), Message("user", instruction_of(row))]
    elif asked:
        prompt = messages_of(row[asked])
    else:
        prompt = chosen[:-1]
        if prompt != rejected[:-1]:
            raise Malformed("different_prompts")
    while prompt and prompt[-1].role == "assistant":
        prompt.pop()
    return _pair(row, prompt, _answer(chosen), _answer(rejected))


def _answer(messages: list[Message]) -> Message:
    return messages[-1] if messages else Message("assistant", "")


def _answer_messages(value: Any) -> list[Message]:
    """An answer as text, as one message, or as the last message of a whole dialogue."""
    if isinstance(value, str) and not is_dialogue(value):
        return [_turn("assistant", value)]
    messages = messages_of([value] if isinstance(value, Mapping) else value)
    return messages if messages and messages[-1].role == "assistant" else []


def _judged_outputs(row: Row) -> PreferencePair:
    """AlpacaEval and LLMBar: 2 (or 1.5 and more) says that the second output is the better one."""
    verdict = row.get("preference", row.get("label"))
    if verdict is None or float(verdict) == 1.5:
        raise Malformed("no_preference", str(verdict))
    second_wins = float(verdict) > 1.5
    chosen, rejected = ("output_2", "output_1") if second_wins else ("output_1", "output_2")
    question = instruction_of({"instruction": row.get("instruction") or row.get("input")})
    answers = (_turn("assistant", row[name]) for name in (chosen, rejected))
    return _pair(row, [Message("user", question)], *answers)


def _pair(row: Row, prompt: list[Message], chosen: Message, rejected: Message) -> PreferencePair:
    prompt, tools = _opened(row, prompt), tools_of(_first_value(row, TOOL_FIELDS))
    if not prompt or prompt[-1].role == "system":
        raise Malformed("no_question")
    if chosen.says_nothing or rejected.says_nothing:
        raise Malformed("empty_answer", "chosen" if chosen.says_nothing else "rejected")
    if replace(chosen, call_ids=()) == replace(rejected, call_ids=()):
        raise Malformed("same_answers")
    # What is wrong with the rejected answer may be just that: a call of a tool that nobody offers.
    check_order([*prompt, chosen], tools)
    return PreferencePair(tuple(in_call_order(prompt)), chosen, rejected, tools)
