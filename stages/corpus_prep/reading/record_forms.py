"""What a row of the user's data is: a document, a conversation or a preference pair, told by its fields.

Rows are recognised one by one, so a file may mix forms. `recognise` names the form; `convert` gives the
record, or None for a row of a known form that holds nothing (an empty answer, a disliked one).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.runtime.errors import UserError

Row = Mapping[str, Any]

TEXT_FIELDS = ("text", "content", "body", "document", "article", "paragraphs", "markdown", "code", "story")
TITLE_FIELDS = ("title", "name", "heading", "headline", "path", "file")
MESSAGE_FIELDS = ("messages", "conversations", "conversation", "dialog", "dialogue")
QUESTION_FIELDS = ("question", "prompt", "query", "problem")
ANSWER_FIELDS = ("answer", "response", "output", "completion", "std_answer", "solution")

KINDS = ("module", "class", "function", "text")

RECOGNISED = (
    "text [title]; instruction [input] output; question answer; prompt response; "
    "messages or conversations (role/content or from/value); prompt chosen rejected; "
    "instruction [input] chosen rejected; conversations chosen rejected; chosen rejected (whole dialogues)"
)


@dataclass(frozen=True)
class Document:
    """A text with its title ("" if it has none) and its kind, one of `KINDS`."""

    title: str
    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Message:
    """One turn. tool_calls are {"name": ..., "arguments": {...}} objects."""

    role: str
    content: str
    tool_calls: tuple[dict[str, Any], ...] = field(default=())

    def as_row(self) -> dict[str, str]:
        """The form that the contracts store."""
        calls = json.dumps(list(self.tool_calls), ensure_ascii=False) if self.tool_calls else ""
        return {"role": self.role, "content": self.content, "tool_calls": calls}


@dataclass(frozen=True)
class Conversation:
    """Messages that end with an assistant's."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class PreferencePair:
    """Messages that end with a user's, and two answers."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


Record = Document | Conversation | PreferencePair


@dataclass(frozen=True)
class Form:
    """A recognised form: what its rows become, and how."""

    name: str
    kind: str
    convert: Callable[[Row], Record | None]


def recognise(row: Row, text_field: str = "", title_field: str = "") -> Form | None:
    """The form of a row, told by which fields it has; None where it is none that we know."""
    if text_field:
        form = Form(text_field, "document", lambda r: _document(r, text_field, title_field))
        return form if text_field in row else None
    return _pair_form(row) or _conversation_form(row) or _document_form(row, title_field)


def unknown_form(where: str, row: Row, text_field: str) -> UserError:
    """The error for a row that `recognise` does not know."""
    columns = ", ".join(row) or "none"
    if text_field:
        return UserError(
            f"{where} has no field {text_field!r}; its fields are: {columns}",
            hint="name one of them: --set corpus_prep.text_field=NAME",
        )
    return UserError(
        f"{where} has fields that are of no known form: {columns}",
        hint=f"recognised: {RECOGNISED}; or name the text: --set corpus_prep.text_field=NAME",
    )


def _first(row: Row, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in row), None)


def text_of(value: Any) -> str:
    """A field as text: strings as they are, lists of lines joined, parts of a message joined, null empty."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return text_of(value.get("text", value.get("value", value.get("content"))))
    if isinstance(value, list | tuple):
        return "\n".join(part for part in map(text_of, value) if part)
    return str(value)


def _document_form(row: Row, title_field: str) -> Form | None:
    name = _first(row, TEXT_FIELDS)
    return Form(name, "document", lambda r: _document(r, name, title_field)) if name else None


def _document(row: Row, text_field: str, title_field: str) -> Document | None:
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
        return Form(name, "conversation", lambda r: _exchange(instruction_of(r), r[answer]))
    if not question or not answer:
        return None
    return Form(f"{question}/{answer}", "conversation", lambda r: _exchange(text_of(r[question]), r[answer]))


def instruction_of(row: Row) -> str:
    """The instruction, with its input below it where there is one."""
    instruction, given = text_of(row.get("instruction")).strip(), text_of(row.get("input")).strip()
    return f"{instruction}\n{given}" if given and given not in instruction else instruction


def _exchange(question: str, answer: Any) -> Conversation | None:
    messages = (Message("user", question.strip()), Message("assistant", text_of(answer).strip()))
    return Conversation(messages) if all(message.content for message in messages) else None


def _seed_task(row: Row) -> Conversation | None:
    instance = (row["instances"] or [{}])[0]
    question = instruction_of({"instruction": row["instruction"], "input": instance.get("input")})
    return _exchange(question, instance.get("output"))


def _dialogue(row: Row, name: str) -> Conversation | None:
    if row.get("label") is False:  # a disliked answer, as in KTO data
        return None
    messages = messages_of(row[name])
    while messages and messages[-1].role != "assistant":
        messages.pop()
    has_question = any(message.role == "user" for message in messages)
    return Conversation(tuple(messages)) if messages and has_question else None


_ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_call": "assistant",
}


def messages_of(value: Any) -> list[Message]:
    """Messages in role/content or from/value form, a whole dialogue as text, or a single question."""
    if isinstance(value, str):
        return _spoken(value)
    messages = []
    for item in value or []:
        said = str(item.get("role") or item.get("from") or "").lower()
        content = text_of(item.get("content", item.get("value"))).strip()
        calls = _tool_calls(content if said == "function_call" else item.get("tool_calls"))
        content = "" if said == "function_call" else content
        if said in _ROLES and (content or calls):
            messages.append(Message(_ROLES[said], content, calls))
    return messages


_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")


def _spoken(text: str) -> list[Message]:
    """`\\n\\nHuman: ...\\n\\nAssistant: ...`, or just a question."""
    parts = _SPEAKER.split(text)
    if len(parts) == 1:
        return [Message("user", text.strip())] if text.strip() else []
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [Message(_ROLES[speaker.lower()], said.strip()) for speaker, said in pairs]


def _tool_calls(value: Any) -> tuple[dict[str, Any], ...]:
    """[{"name", "arguments"}], also in OpenAI's form and as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return ()
    calls = []
    for item in [value] if isinstance(value, dict) else value or []:
        call = item.get("function", item)
        arguments = call.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                continue
        if call.get("name") and isinstance(arguments, dict):
            calls.append({"name": str(call["name"]), "arguments": arguments})
    return tuple(calls)


def _pair_form(row: Row) -> Form | None:
    if "chosen" in row and "rejected" in row:
        asked = _first(row, ("prompt", *MESSAGE_FIELDS, "instruction", *QUESTION_FIELDS))
        name = f"{asked}/chosen/rejected" if asked else "chosen/rejected"
        return Form(name, "preference", lambda r: _chosen_rejected(r, asked))
    if "output_1" in row and "output_2" in row and _first(row, ("preference", "label")):
        return Form("output_1/output_2", "preference", _judged_outputs)
    return None


def _chosen_rejected(row: Row, asked: str | None) -> PreferencePair | None:
    chosen, rejected = _answer_messages(row["chosen"]), _answer_messages(row["rejected"])
    if asked == "instruction":
        prompt = [Message("user", instruction_of(row))]
    elif asked:
        prompt = messages_of(row[asked])
    else:
        prompt = chosen[:-1]
    while prompt and prompt[-1].role == "assistant":
        prompt.pop()
    return _pair(prompt, chosen[-1].content if chosen else "", rejected[-1].content if rejected else "")


def _answer_messages(value: Any) -> list[Message]:
    """An answer as text, as one message, or as the last message of a whole dialogue."""
    if isinstance(value, str) and not _SPEAKER.search(value):
        return [Message("assistant", value.strip())]
    messages = messages_of([value] if isinstance(value, Mapping) else value)
    return messages if messages and messages[-1].role == "assistant" else []


def _judged_outputs(row: Row) -> PreferencePair | None:
    """AlpacaEval and LLMBar: 2 (or 1.5 and more) says that the second output is the better one."""
    verdict = row.get("preference", row.get("label"))
    if verdict is None or float(verdict) == 1.5:
        return None
    second_wins = float(verdict) > 1.5
    chosen, rejected = ("output_2", "output_1") if second_wins else ("output_1", "output_2")
    question = instruction_of({"instruction": row.get("instruction") or row.get("input")})
    return _pair([Message("user", question)], text_of(row[chosen]), text_of(row[rejected]))


def _pair(prompt: list[Message], chosen: str, rejected: str) -> PreferencePair | None:
    whole = bool(prompt) and bool(prompt[-1].content) and prompt[-1].role != "assistant"
    if not whole or not chosen.strip() or not rejected.strip() or chosen.strip() == rejected.strip():
        return None
    return PreferencePair(tuple(prompt), chosen.strip(), rejected.strip())
