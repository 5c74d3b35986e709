"""Messages of a conversation in the forms that people have: OpenAI, ShareGPT, content parts, plain dialogue.

What a row says is either taken in full or refused with a reason: `Malformed` is raised, never half a message
left out. Reasons are the keys of `REASONS`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

REASONS = {
    "empty_answer": "the last answer says nothing, or there is none",
    "no_question": "nothing is asked before the answer, or the question is empty",
    "bad_messages": "the messages are no list of objects",
    "unknown_role": "a speaker that is neither system, user, assistant nor tool",
    "roles_out_of_order": "two turns of one speaker in a row, a late system prompt, or an answer first",
    "result_without_call": "a tool's result that no call asked for",
    "call_without_result": "a tool call with another turn in place of its result",
    "bad_arguments": "a tool call without a name, or whose arguments are no JSON object",
    "bad_tools": "tools that are no JSON list of functions with names",
    "undeclared_tool": "a call of a tool that is not among the tools that the row declares",
    "bad_weight": "a turn's loss_weight, weight or train is neither true nor false nor a number from 0 on",
    "unsupported_content": "a picture, a sound or another part that is no text",
    "same_answers": "the chosen answer is the rejected one",
    "different_prompts": "the two dialogues differ before their last answers",
    "no_preference": "a tie, or no verdict",
}
"""Why a row of a known form is refused."""


class Malformed(Exception):
    """A row of a known form that cannot be taken. reason: a key of REASONS."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail[:200]


@dataclass(frozen=True)
class Message:
    """One turn. tool_calls are {"name", "arguments"} objects; reasoning is what was thought before.

    weight: how much an assistant's turn counts in training; None is 1.
    call_ids: of an assistant's calls, "" where one has none, or of the call that a tool answers. Beyond which
    result belongs to which call they say nothing: records that differ in ids alone are equal to every check.
    """

    role: str
    content: str
    tool_calls: tuple[dict[str, Any], ...] = field(default=())
    reasoning: str = ""
    call_ids: tuple[str, ...] = ()
    weight: float | None = None

    def as_row(self) -> dict[str, Any]:
        """The form of `data_contracts.conversations.WEIGHTED_MESSAGE`."""
        ids = self.call_ids or ("",) * len(self.tool_calls)
        calls = [
            {"id": of, "name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
            for of, call in zip(ids, self.tool_calls, strict=self.role == "assistant")
        ]
        answered = self.call_ids[0] if self.role == "tool" and self.call_ids else ""
        told = {"role": self.role, "content": self.content, "reasoning": self.reasoning}
        return {**told, "tool_calls": calls, "tool_call_id": answered, "weight": self.weight}

    @property
    def says_nothing(self) -> bool:
        """Whether there is neither content nor a call."""
        return not self.content and not self.tool_calls


ROLES = {
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
    "tool_call": "assistant",
}
_CALLERS = ("function_call", "tool_call")
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_WEIGHT_FIELDS = ("loss_weight", "weight", "train")
_THOUGHT = re.compile(r"\A\s*<think>(.*?)</think>\s*", re.DOTALL)


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


def messages_of(value: Any) -> list[Message]:
    """Messages in role/content or from/value form, a whole dialogue as text, or a single question.

    An assistant's words and the call that follows them are one message, and so are calls in a row. Empty
    system prompts are left out. Raises Malformed.
    """
    if isinstance(value, str):
        listed = _json(value) if value.lstrip().startswith("[{") else None
        if not isinstance(listed, list):
            return _spoken(value)
        value = listed
    if not isinstance(value, list | tuple):
        raise Malformed("bad_messages", type(value).__name__)
    messages: list[Message] = []
    for item in value:
        message = _weighted(_message(item), item)
        before = messages[-1] if messages else None
        if before is not None and _continues(before, message):
            messages[-1] = _joined(before, message)
        elif message.role != "system" or message.content:
            messages.append(message)
    return messages


def _continues(before: Message, message: Message) -> bool:
    both_assistant = before.role == message.role == "assistant"
    is_only_call = bool(message.tool_calls) and not message.content
    return both_assistant and is_only_call and before.weight == message.weight


def _joined(before: Message, message: Message) -> Message:
    calls = before.tool_calls + message.tool_calls
    ids = [of.call_ids or ("",) * len(of.tool_calls) for of in (before, message)]
    thought = "\n".join(filter(None, (before.reasoning, message.reasoning)))
    return Message("assistant", before.content, calls, thought, _any_of(ids[0] + ids[1]), before.weight)


def _any_of(ids: tuple[str, ...]) -> tuple[str, ...]:
    return ids if any(ids) else ()


def _weighted(message: Message, item: Mapping[str, Any]) -> Message:
    """With what LLaMA-Factory, OpenAI, OpenChat and axolotl say of an assistant's turn: 0 masks it."""
    found = next((item[name] for name in _WEIGHT_FIELDS if item.get(name) is not None), 1)
    if message.role != "assistant":
        return message
    if not isinstance(found, int | float) or not 0 <= found < math.inf:
        raise Malformed("bad_weight", repr(found))
    return message if found == 1 else replace(message, weight=float(found))


def _message(item: Any) -> Message:
    if not isinstance(item, Mapping):
        raise Malformed("bad_messages", f"a message is a {type(item).__name__}")
    said = str(item.get("role") or item.get("from") or "").lower()
    if said not in ROLES:
        raise Malformed("unknown_role", said)
    value = item.get("content", item.get("value"))
    if said in _CALLERS:
        return _caller("", "", tool_calls_of(value))
    content, thought, calls = _parts(value)
    calls += tool_calls_of(item.get("tool_calls") or item.get("function_call"))
    thought = next((text_of(item[name]) for name in _REASONING_FIELDS if item.get(name)), thought)
    if ROLES[said] == "assistant" and not thought and (found := _THOUGHT.match(content)):
        thought, content = found[1], content[found.end() :]
    if ROLES[said] == "assistant":
        return _caller(content.strip(), thought.strip(), calls)
    ids = _any_of((text_of(item.get("tool_call_id")),)) if ROLES[said] == "tool" else ()
    return Message(ROLES[said], content.strip(), _without_ids(calls), thought.strip(), ids)


def _caller(content: str, thought: str, calls: tuple[dict[str, Any], ...]) -> Message:
    ids = _any_of(tuple(call.get("id", "") for call in calls))
    return Message("assistant", content, _without_ids(calls), thought, ids)


def _without_ids(calls: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    return tuple({"name": call["name"], "arguments": call["arguments"]} for call in calls)


def _parts(value: Any) -> tuple[str, str, tuple[dict[str, Any], ...]]:
    """(content, reasoning, calls) of a content that may be a list of typed parts."""
    if not isinstance(value, list | tuple):
        return text_of(value), "", ()
    said: list[str] = []
    thought: list[str] = []
    calls: tuple[dict[str, Any], ...] = ()
    for part in value:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind in ("text", "input_text", "output_text"):
            said.append(text_of(part))
        elif kind in ("reasoning", "thinking"):
            thought.append(text_of(part.get("thinking", part)))
        elif kind in _CALLERS:
            calls += tool_calls_of(part.get("value", part))
        elif kind == "tool_use":  # Anthropic's spelling
            call = {"id": part.get("id"), "name": part.get("name"), "arguments": part.get("input")}
            calls += tool_calls_of([call])
        else:
            raise Malformed("unsupported_content", str(kind))
    return "\n".join(filter(None, said)), "\n".join(filter(None, thought)), calls


_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")


def is_dialogue(text: str) -> bool:
    """Whether a text is a whole dialogue, `\\n\\nHuman: ...\\n\\nAssistant: ...`."""
    return _SPEAKER.search(text) is not None


def _spoken(text: str) -> list[Message]:
    """A dialogue as text, or just a question. Turns that say nothing are left out."""
    parts = _SPEAKER.split(text)
    if len(parts) == 1:
        return [Message("user", text.strip())] if text.strip() else []
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [Message(ROLES[speaker.lower()], said.strip()) for speaker, said in pairs]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def tool_calls_of(value: Any) -> tuple[dict[str, Any], ...]:
    """[{"name", "arguments"}], with "id" where it has one, also in OpenAI's form and as JSON text.

    Raises Malformed("bad_arguments").
    """
    if value is None or value == "":
        return ()
    calls = _json(value) if isinstance(value, str) else value
    if calls is None:
        raise Malformed("bad_arguments", str(value))
    return tuple(_call(item) for item in ([calls] if isinstance(calls, Mapping) else calls))


def _call(item: Any) -> dict[str, Any]:
    call = item.get("function", item) if isinstance(item, Mapping) else None
    if not isinstance(call, Mapping) or not call.get("name"):
        raise Malformed("bad_arguments", str(item))
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        arguments = _json(arguments)
        if arguments is None:
            raise Malformed("bad_arguments", f"{call['name']}: {call.get('arguments')}")
    if not isinstance(arguments or {}, Mapping):
        raise Malformed("bad_arguments", f"{call['name']}: {arguments}")
    named = {"name": str(call["name"]), "arguments": dict(arguments or {})}
    return {**named, "id": str(item["id"])} if item.get("id") else named


def tools_of(value: Any) -> str:
    """Declared tools as one JSON list in OpenAI's form, or "". Raises Malformed("bad_tools").

    Nulls are left out: Parquet gives every function the fields of all others.
    """
    tools = _json(value) if isinstance(value, str) and value.strip() else value
    if not tools:
        if tools is None and value:
            raise Malformed("bad_tools", str(value))
        return ""
    tools = [tools] if isinstance(tools, Mapping) else tools
    return json.dumps([_tool(tool) for tool in tools], ensure_ascii=False)


def _tool(tool: Any) -> dict[str, Any]:
    tool = _json(tool) if isinstance(tool, str) else tool
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not function.get("name"):
        raise Malformed("bad_tools", str(tool))
    return {"type": "function", "function": _without_nulls(function)}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _without_nulls(of) for name, of in value.items() if of is not None}
    return [_without_nulls(of) for of in value] if isinstance(value, list | tuple) else value


def check_order(messages: Iterable[Message], tools: str = "") -> None:
    """Raise Malformed unless the turns are [system], then user (call result)* answer again and again.

    A conversation may end with a call. Several calls may share one result, never the other way round.
    """
    declared = {tool["function"]["name"] for tool in json.loads(tools)} if tools else None
    before, open_calls = "start", 0
    for position, message in enumerate(messages):
        role = message.role
        if role == "tool":
            if before not in ("call", "tool") or open_calls == 0:
                raise Malformed("result_without_call", f"turn {position + 1}")
            open_calls -= 1
        elif before == "call":
            raise Malformed("call_without_result", f"turn {position + 1} is the {role}'s")
        elif role not in _FOLLOWS[before]:
            raise Malformed("roles_out_of_order", f"turn {position + 1}: {role} after {before}")
        if role in ("user", "assistant") and message.says_nothing:
            raise Malformed("empty_answer" if role == "assistant" else "no_question", f"turn {position + 1}")
        unknown = {call["name"] for call in message.tool_calls} - (declared or set())
        if declared is not None and unknown:
            raise Malformed("undeclared_tool", ", ".join(sorted(unknown)))
        before = "call" if message.tool_calls else role
        open_calls = len(message.tool_calls) if message.tool_calls else open_calls


_FOLLOWS = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "tool": ("assistant",),
}


def in_call_order(messages: Sequence[Message]) -> list[Message]:
    """The same turns; results of several calls stand in the order of these calls.

    They are matched by their ids, where every call of the turn has one, and put in order where every result
    has one. Raises Malformed for a result with an id that no call has left.
    """
    ordered: list[Message] = []
    for is_result, turns in groupby(messages, lambda message: message.role == "tool"):
        group = list(turns)
        asked = ordered[-1].call_ids if is_result and ordered else ()
        ordered += _matched(group, asked) if asked and all(asked) else group
    return ordered


def _matched(results: list[Message], asked: tuple[str, ...]) -> list[Message]:
    waiting, places = list(asked), []
    for result in results:
        for of in result.call_ids:
            if of not in waiting:
                raise Malformed("result_without_call", f"no call has the id {of}")
            waiting.remove(of)
            places.append(asked.index(of))
    if len(places) < len(results):
        return results
    return [result for _, result in sorted(zip(places, results, strict=True), key=lambda pair: pair[0])]
