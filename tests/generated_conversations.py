"""Conversations of every shape from a seeded generator, and what the assistant says in them as plain text."""

from __future__ import annotations

import json
import random
from typing import Any

Message = dict[str, Any]

WORDS = (
    *("lamp", "keeper", "12*(3+4)", "the", "oil.", "naïve", '"quoted"', "{}", "a\nb", "  two spaces ", "\tx"),
    *("灯塔", "看守人，", "今天的油不够。", "😀", "é", "x <= y", "\\n", "</tools>", "think", "<b>", "'", "&"),
)
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "calculator", "description": "灯 <sums> & 'more'"}},
    {"type": "function", "function": {"name": "search", "parameters": {"b": [1, 2.5, None], "a": {}}}},
]


def generated(count: int, seed: int = 0) -> list[tuple[list[Message], list[dict[str, Any]]]]:
    """`count` pairs of messages and tools on offer; the same seed gives the same ones."""
    draw = random.Random(seed)
    return [(_conversation(draw), TOOLS[: draw.choice((0, 0, 1, 2))]) for _ in range(count)]


def _conversation(draw: random.Random) -> list[Message]:
    messages: list[Message] = [_said(draw, "system")] if draw.random() < 0.4 else []
    for _ in range(draw.randint(1, 4)):
        messages.append(_said(draw, "user"))
        if draw.random() < 0.4:
            calls = [_call(draw) for _ in range(draw.choice((1, 1, 2, 3)))]
            messages.append({**_assistant(draw), "tool_calls": calls})
            messages += [_said(draw, "tool") for _ in calls]
        messages.append(_assistant(draw))
    return messages if draw.random() < 0.9 else messages[:-1] or messages


def _said(draw: random.Random, role: str) -> Message:
    return {"role": role, "content": _text(draw)}


def _assistant(draw: random.Random) -> Message:
    thought = {"reasoning_content": _text(draw)} if draw.random() < 0.4 else {}
    return {**_said(draw, "assistant"), **thought}


def _text(draw: random.Random) -> str:
    """Sometimes nothing, sometimes newlines and spaces at either end."""
    inner = " ".join(draw.choices(WORDS, k=draw.choice((0, 1, 3, 8, 20))))
    return draw.choice(("", "", "\n", " ")) + inner + draw.choice(("", "", "\n\n", " \n"))


def _call(draw: random.Random) -> dict[str, Any]:
    values = [_text(draw), draw.randint(-9, 999), None, [1, "灯"], {"深": True}]
    arguments = {draw.choice(("b", "a", "灯")): draw.choice(values) for _ in range(draw.randint(0, 3))}
    call = {"name": draw.choice(("calculator", "search")), "arguments": arguments}
    return call if draw.random() < 0.7 else {"type": "function", "function": call}


def assistant_text(message: Message) -> str:
    """What the assistant writes in its turn, markers spelled out: written down apart from the product."""
    thought = (message.get("reasoning_content") or "").strip("\n")
    content = (message.get("content") or "").strip("\n")
    text = f"<think>\n{thought}\n</think>" if thought else ""
    text += "\n\n" if thought and content else ""
    text += content
    for call in message.get("tool_calls") or []:
        function = call.get("function", call)
        said = {"name": function["name"], "arguments": function["arguments"]}
        text += f"<tool_call>{json.dumps(said, ensure_ascii=False)}</tool_call>"
    return text + "<|im_end|>"


def everything_the_assistant_says(messages: list[Message]) -> str:
    """All its turns, one behind the other."""
    return "".join(assistant_text(message) for message in messages if message["role"] == "assistant")
