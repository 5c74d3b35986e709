"""The one chat format: training, serving and the agent all build their ids here.

    <|bos|><|im_start|>user
    What is 12*(3+4)?<|im_end|>
    <|im_start|>assistant
    <tool_call>{"name": "calculator", "arguments": {"expression": "12*(3+4)"}}</tool_call><|im_end|>
    <|im_start|>user
    <tool_response>84</tool_response><|im_end|>
    <|im_start|>assistant
    12*(3+4) is 84.<|im_end|>

What has no marker of its own is text. Functions on offer stand in the system prompt, one a line between
<tools> and </tools> (Qwen, Hermes). What the assistant thought stands before its content between <think> and
</think> (DeepSeek-R1, Guo et al. 2025, arXiv:2501.12948), and is trained on like the rest of its turn.

Why generation continues exactly what training saw: the prompt ends in the newline after "assistant", newlines
are hard boundaries of the tokenizer, and a content never begins or ends with a newline (they are stripped),
so no merge can cross from the prompt into the answer. Roles and content are encoded as plain text and only
the markers become control tokens, so a user who types "<|im_end|>" ends nothing. Hugging Face's
`apply_chat_template` renders the same text and the same ids, but it reads markers inside a content as control
tokens: encode untrusted text here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.whitebox.chat_template import CHAT_TEMPLATE, Reasoning
from stages.whitebox.tokenizer import Tokenizer

__all__ = ["CHAT_TEMPLATE"]

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"
TOOL_RESPONSE, TOOL_RESPONSE_END = "<tool_response>", "</tool_response>"
CHAT_TOKENS = (IM_START, IM_END, TOOL_CALL, TOOL_CALL_END, TOOL_RESPONSE, TOOL_RESPONSE_END)
NUM_RESERVED_TOKENS = 8
SPECIAL_TOKENS = (*CHAT_TOKENS, *(f"<|reserved_{i}|>" for i in range(NUM_RESERVED_TOKENS)))
"""Control tokens in the order of their ids, which follow unk, bos, eos, pad."""

ROLES = ("system", "user", "assistant", "tool")
THINK, THINK_END = "<think>\n", "\n</think>"
NO_THOUGHT = f"{THINK}{THINK_END}\n\n"
TOOLS, TOOLS_END = "You may call these functions:\n<tools>\n", "\n</tools>"


@dataclass
class RenderedChat:
    """Token ids of a conversation; `is_target[t]` tells whether predicting `ids[t]` is trained."""

    ids: list[int] = field(default_factory=list)
    is_target: list[bool] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    """How much each token counts in the loss; empty where all targets count 1."""
    calls: list[tuple[int, int]] = field(default_factory=list)
    """Where tool calls begin and end, markers included; no row ends inside one."""

    def add(self, ids: Sequence[int], weight: float = 0.0) -> None:
        """Append `ids`; a weight of 0 leaves them out of the loss."""
        if weight not in (0.0, 1.0) and not self.weights:
            self.weights = [float(is_target) for is_target in self.is_target]
        self.weights += [weight] * len(ids) if self.weights or weight not in (0.0, 1.0) else []
        self.ids += ids
        self.is_target += [weight > 0] * len(ids)

    @property
    def num_targets(self) -> int:
        """How many of the tokens are trained on."""
        return sum(self.is_target)


def render(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] = (),
    enable_thinking: bool = True,
) -> RenderedChat:
    """Ids and loss mask of `messages`, each {"role", "content", "reasoning_content", "tool_calls": [{"name",
    "arguments"}], "weight"}; all but the role may be missing. tools: functions on offer, as JSON objects.

    Targets are what the assistant writes: reasoning, content, tool calls and the closing <|im_end|>, each as
    much as its message weighs. Which reasoning is shown is the tokenizer's to say (`chat_template.py`).
    With `add_generation_prompt` the ids end where the assistant's next message begins; without
    `enable_thinking` behind a block of reasoning that is empty, as Qwen3 has it.
    Raises ValueError on an empty list, an unknown role or a weight below 0.
    """
    if not messages:
        raise ValueError("a conversation needs at least one message")
    chat = RenderedChat()
    chat.add([tokenizer.bos_id])
    newline = tokenizer.encode("\n")
    for message in with_tools_told(shown_reasoning(messages, tokenizer.reasoning), tools):
        weight = _weight_of(message)
        _open_turn(chat, message["role"], tokenizer, newline)
        _add_body(chat, message, tokenizer, weight)
        chat.add([tokenizer.special_id(IM_END)], weight)
        chat.add(newline)
    if add_generation_prompt:
        _open_turn(chat, "assistant", tokenizer, newline)
        chat.add([] if enable_thinking else tokenizer.encode(NO_THOUGHT))
    return chat


def shown_reasoning(messages: Sequence[Mapping[str, Any]], reasoning: Reasoning) -> list[Mapping[str, Any]]:
    """The messages without the reasoning that a conversation does not show: all, or that before the last
    question.
    """
    asked = [place for place, message in enumerate(messages) if message["role"] == "user"]
    first_shown = {"keep": 0, "drop": len(messages), "last_turn": asked[-1] if asked else 0}[reasoning]
    return [
        {**message, "reasoning_content": ""} if place < first_shown and message.get("reasoning_content")
        else message
        for place, message in enumerate(messages)
    ]  # fmt: skip


def _weight_of(message: Mapping[str, Any]) -> float:
    """How much a message's tokens count: 1 unless it says otherwise, and 0 what is not the assistant's."""
    weight = message.get("weight")
    if weight is not None and not 0 <= weight < math.inf:
        raise ValueError(f"a message has weight {weight}, expected 0 (not trained on) or more")
    return (1.0 if weight is None else float(weight)) if message["role"] == "assistant" else 0.0


def _open_turn(chat: RenderedChat, role: str, tokenizer: Tokenizer, newline: list[int]) -> None:
    if role not in ROLES:
        raise ValueError(f"unknown role {role!r}: a message's role is one of {', '.join(ROLES)}")
    shown = "user" if role == "tool" else role  # as in Qwen: a tool's result comes in the user's turn
    chat.add([tokenizer.special_id(IM_START), *tokenizer.encode(shown), *newline])


def _add_body(chat: RenderedChat, message: Mapping[str, Any], tokenizer: Tokenizer, weight: float) -> None:
    content = tokenizer.encode(spoken_text(message))
    if message["role"] == "tool":
        content = _wrap(tokenizer, TOOL_RESPONSE, content, TOOL_RESPONSE_END)
    chat.add(content, weight)
    for call in (message.get("tool_calls") or []) if message["role"] == "assistant" else []:
        call_ids = tokenizer.encode(tool_call_text(call))
        begins = len(chat.ids)
        chat.add(_wrap(tokenizer, TOOL_CALL, call_ids, TOOL_CALL_END), weight)
        chat.calls.append((begins, len(chat.ids)))


def _wrap(tokenizer: Tokenizer, opening: str, ids: list[int], closing: str) -> list[int]:
    return [tokenizer.special_id(opening), *ids, tokenizer.special_id(closing)]


def strip_content(content: str) -> str:
    """`content` as it is rendered: without newlines at either end, which would merge with the template's."""
    return content.strip("\n")


def spoken_text(message: Mapping[str, Any]) -> str:
    """What a message says as it is rendered, but for calls: an assistant's reasoning, then the content."""
    content = strip_content(message.get("content") or "")
    thought = strip_content(message.get("reasoning_content") or "") if message["role"] == "assistant" else ""
    return "\n\n".join(filter(None, (f"{THINK}{thought}{THINK_END}" if thought else "", content)))


def with_tools_told(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The messages with the functions on offer at the end of their system prompt, or as one of their own."""
    if not tools:
        return list(messages)
    told = TOOLS + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools) + TOOLS_END
    if not messages or messages[0]["role"] != "system":
        return [{"role": "system", "content": told}, *messages]
    prompt = "\n\n".join(filter(None, (strip_content(messages[0].get("content") or ""), told)))
    return [{**messages[0], "content": prompt}, *messages[1:]]


def tool_call_text(call: Mapping[str, Any]) -> str:
    """The JSON between <tool_call> and </tool_call>: always name before arguments, non-ASCII unescaped."""
    function = call.get("function") or call  # OpenAI nests {"type": "function", "function": {...}}
    return json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)


def conversation_text(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Roles, contents (with tools and reasoning in them) and tool calls, one per line: what a vocabulary is
    learned from.

    Arguments of a call stand on lines of their own, so that no piece is learned across their quotes.
    """
    lines: list[str] = []
    for message in with_tools_told(messages, tools):
        lines += [message["role"], spoken_text(message)]
        for call in message.get("tool_calls") or []:
            lines.append(_argument_on_its_own_line(tool_call_text(call), call))
    return "\n".join(line for line in lines if line)


def _argument_on_its_own_line(text: str, call: Mapping[str, Any]) -> str:
    for value in (call.get("function") or call)["arguments"].values():
        inner = json.dumps(value, ensure_ascii=False).strip('"')
        text = text.replace(f'"{inner}"', f'"\n{inner}\n"') if isinstance(value, str) and inner else text
    return text


def parse_completion(ids: Sequence[int], tokenizer: Tokenizer) -> dict[str, Any]:
    """The assistant message that generated `ids` spell: the inverse of what `render` does with one.

    Stops at <|im_end|>. There is `reasoning_content` where the turn begins with <think> and closes it. A tool
    call that is no JSON object with name and arguments is left out of `tool_calls` and stays readable in
    `content`.
    """
    message: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": []}
    opening, closing = tokenizer.special_id(TOOL_CALL), tokenizer.special_id(TOOL_CALL_END)
    ids = list(ids)
    if (end := tokenizer.special_id(IM_END)) in ids:
        ids = ids[: ids.index(end)]
    while opening in ids:
        start = ids.index(opening)
        stop = ids.index(closing, start) if closing in ids[start:] else len(ids)
        text = tokenizer.decode(ids[start + 1 : stop])
        message["content"] += tokenizer.decode(ids[:start])
        call = _parse_tool_call(text)
        if call is None:
            message["content"] += text
        else:
            message["tool_calls"].append(call)
        ids = ids[stop + 1 :]
    message["content"] += tokenizer.decode(ids)
    return _with_reasoning_apart(message)


def _with_reasoning_apart(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if not content.startswith(THINK) or THINK_END not in content:
        return message
    thought, said = content[len(THINK) :].split(THINK_END, 1)
    return {**message, "content": strip_content(said), "reasoning_content": thought}


def _parse_tool_call(text: str) -> dict[str, Any] | None:
    try:
        call = json.loads(text)
    except ValueError:
        return None
    return {"name": call["name"], "arguments": call["arguments"]} if _is_call(call) else None


def _is_call(call: Any) -> bool:
    return (
        isinstance(call, dict)
        and isinstance(call.get("name"), str)
        and isinstance(call.get("arguments"), dict)
    )


def messages_from_columns(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages, as `render` takes them, out of a table's list<struct<role, content, reasoning, tool_calls>>,
    where tool_calls are list<struct<name, arguments>> with arguments as JSON text. Nulls are empty.

    Raises ValueError where arguments are no JSON object.
    """
    return [
        {
            "role": row["role"],
            "content": row["content"] or "",
            "reasoning_content": row["reasoning"] or "",
            "tool_calls": [_read_call(call) for call in row["tool_calls"] or []],
            **({} if row.get("weight") is None else {"weight": row["weight"]}),
        }
        for row in rows
    ]


def _read_call(call: Mapping[str, Any]) -> dict[str, Any]:
    name, text = call["name"], call["arguments"]
    arguments = _json_or_none(text)
    if not name or not isinstance(arguments, dict):
        raise ValueError(f"a call of tool {name!r} has arguments {str(text)[:80]!r}, expected a JSON object")
    return {"name": name, "arguments": arguments}


def _json_or_none(text: str | None) -> Any:
    try:
        return json.loads(text or "")
    except ValueError:
        return None


def tools_from_column(text: str | None) -> list[dict[str, Any]]:
    """Functions on offer, as `render` takes them, out of a table's column of JSON text; none of "" or null.

    Raises ValueError where the text is no JSON list of objects.
    """
    tools = _json_or_none(text) if text else []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"tools holds {str(text)[:80]!r}, expected a JSON list of functions")
    return tools
