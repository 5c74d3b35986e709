"""The one chat format: training, serving and the agent all build their ids here.

    <|bos|><|im_start|>user
    What is 12*(3+4)?<|im_end|>
    <|im_start|>assistant
    <tool_call>{"name": "calculator", "arguments": {"expression": "12*(3+4)"}}</tool_call><|im_end|>
    <|im_start|>user
    <tool_response>84</tool_response><|im_end|>
    <|im_start|>assistant
    12*(3+4) is 84.<|im_end|>

Why generation continues exactly what training saw: the prompt ends in the newline after "assistant", newlines
are hard boundaries of the tokenizer, and a content never begins or ends with a newline (they are stripped),
so no merge can cross from the prompt into the answer. Roles and content are encoded as plain text and only
the markers become control tokens, so a user who types "<|im_end|>" ends nothing. Hugging Face's
`apply_chat_template` renders the same text and the same ids, but it reads markers inside a content as control
tokens: encode untrusted text here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.whitebox.tokenizer import Tokenizer

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"
TOOL_RESPONSE, TOOL_RESPONSE_END = "<tool_response>", "</tool_response>"
CHAT_TOKENS = (IM_START, IM_END, TOOL_CALL, TOOL_CALL_END, TOOL_RESPONSE, TOOL_RESPONSE_END)
NUM_RESERVED_TOKENS = 8
SPECIAL_TOKENS = (*CHAT_TOKENS, *(f"<|reserved_{i}|>" for i in range(NUM_RESERVED_TOKENS)))
"""Control tokens in the order of their ids, which follow unk, bos, eos, pad."""

ROLES = ("system", "user", "assistant", "tool")

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- set content = (message.content or '').strip('\\n') %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- generation %}
{{- content }}
{%- for tool_call in message.tool_calls or [] %}
{%- set call = tool_call.function or tool_call %}
{{- '<tool_call>{"name": ' + call.name | tojson }}
{{- ', "arguments": ' + call.arguments | tojson + '}</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>' }}
{%- endgeneration %}
{{- '\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>' + content + '</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""The same format as Jinja, for `tokenizer_config.json`; a test compares ids and loss mask with `render`."""


@dataclass
class RenderedChat:
    """Token ids of a conversation; `is_target[t]` tells whether predicting `ids[t]` is trained."""

    ids: list[int] = field(default_factory=list)
    is_target: list[bool] = field(default_factory=list)

    def add(self, ids: Sequence[int], is_target: bool = False) -> None:
        """Append `ids` under one flag."""
        self.ids += ids
        self.is_target += [is_target] * len(ids)

    @property
    def num_targets(self) -> int:
        """How many of the tokens are trained on."""
        return sum(self.is_target)


def render(
    messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, add_generation_prompt: bool = False
) -> RenderedChat:
    """Ids and loss mask of `messages`, each {"role", "content", "tool_calls": [{"name", "arguments"}]}.

    Targets are what the assistant writes: its content, its tool calls and the closing <|im_end|>.
    With `add_generation_prompt` the ids end where the assistant's next message begins.
    Raises ValueError on an empty list or an unknown role.
    """
    if not messages:
        raise ValueError("a conversation needs at least one message")
    chat = RenderedChat()
    chat.add([tokenizer.bos_id])
    newline = tokenizer.encode("\n")
    for message in messages:
        _open_turn(chat, message["role"], tokenizer, newline)
        _add_body(chat, message, tokenizer)
        chat.add([tokenizer.special_id(IM_END)], message["role"] == "assistant")
        chat.add(newline)
    if add_generation_prompt:
        _open_turn(chat, "assistant", tokenizer, newline)
    return chat


def _open_turn(chat: RenderedChat, role: str, tokenizer: Tokenizer, newline: list[int]) -> None:
    if role not in ROLES:
        raise ValueError(f"unknown role {role!r}: a message's role is one of {', '.join(ROLES)}")
    shown = "user" if role == "tool" else role  # as in Qwen: a tool's result comes in the user's turn
    chat.add([tokenizer.special_id(IM_START), *tokenizer.encode(shown), *newline])


def _add_body(chat: RenderedChat, message: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    content = tokenizer.encode(strip_content(message.get("content") or ""))
    if message["role"] == "tool":
        content = _wrap(tokenizer, TOOL_RESPONSE, content, TOOL_RESPONSE_END)
    is_target = message["role"] == "assistant"
    chat.add(content, is_target)
    for call in (message.get("tool_calls") or []) if is_target else []:
        call_ids = tokenizer.encode(tool_call_text(call))
        chat.add(_wrap(tokenizer, TOOL_CALL, call_ids, TOOL_CALL_END), is_target)


def _wrap(tokenizer: Tokenizer, opening: str, ids: list[int], closing: str) -> list[int]:
    return [tokenizer.special_id(opening), *ids, tokenizer.special_id(closing)]


def strip_content(content: str) -> str:
    """`content` as it is rendered: without newlines at either end, which would merge with the template's."""
    return content.strip("\n")


def tool_call_text(call: Mapping[str, Any]) -> str:
    """The JSON between <tool_call> and </tool_call>: always name before arguments, non-ASCII unescaped."""
    function = call.get("function") or call  # OpenAI nests {"type": "function", "function": {...}}
    return json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)


def conversation_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Roles, contents and tool calls, one per line: what a vocabulary is learned from.

    Arguments of a call stand on lines of their own, so that no piece is learned across their quotes.
    """
    lines: list[str] = []
    for message in messages:
        lines += [message["role"], strip_content(message.get("content") or "")]
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

    Stops at <|im_end|>. A tool call that is no JSON object with name and arguments is left out of
    `tool_calls` and stays readable in `content`.
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
    return message


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
    """Messages out of a table's list<struct<role, content, tool_calls>>, where tool_calls is "" or JSON text.

    Raises ValueError when the JSON is no list of {"name", "arguments"}.
    """
    return [
        {"role": row["role"], "content": row["content"] or "", "tool_calls": _read_calls(row["tool_calls"])}
        for row in rows
    ]


def _read_calls(text: str | None) -> list[dict[str, Any]]:
    if not text:
        return []
    try:
        calls = json.loads(text)
    except ValueError as error:
        raise ValueError(f"tool_calls holds {text[:80]!r}, expected a JSON list ({error})") from error
    if not isinstance(calls, list) or not all(_is_call(call) for call in calls):
        raise ValueError(f'tool_calls holds {text[:80]!r}, expected [{{"name": ..., "arguments": ...}}]')
    return calls
