"""The chat format as Jinja, which travels with the tokenizer, and what it does with an assistant's reasoning.

A template keeps all reasoning of a conversation, drops it, or keeps it in the last turn: behind the last
question, where a model that calls tools is still at work on its answer (Qwen3, DeepSeek-R1). Training, our
serving and transformers read the same word in the same file, so they cannot disagree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

Reasoning = Literal["keep", "drop", "last_turn"]

TEMPLATE_FILE, TEMPLATE_CONFIG = "chat_template.jinja", "tokenizer_config.json"
_SWITCH = re.compile(r"set reasoning = '(\w+)'")

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- set reasoning = 'keep' %}
{%- set turns = messages %}
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}
{%- set turns = messages[1:] %}
{%- set prompt = (messages[0].content or '').strip('\\n') %}
{{- prompt + '\\n\\n' if prompt }}
{%- endif %}
{{- 'You may call these functions:\\n<tools>' }}
{%- for tool in tools %}
{{- '\\n' + tool | tojson }}
{%- endfor %}
{{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- set asked = namespace(last=-1) %}
{%- for message in turns %}
{%- if message.role == 'user' %}
{%- set asked.last = loop.index0 %}
{%- endif %}
{%- endfor %}
{%- for message in turns %}
{%- set content = (message.content or '').strip('\\n') %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- generation %}
{%- set thought = (message.reasoning_content or '').strip('\\n') %}
{%- set is_shown = reasoning == 'keep' or reasoning == 'last_turn' and loop.index0 > asked.last %}
{%- if thought and is_shown %}
{{- '<think>\\n' + thought + '\\n</think>' }}
{{- '\\n\\n' if content }}
{%- endif %}
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
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}
"""
"""For `tokenizer_config.json`; a test compares ids and loss mask with `chat_format.render`."""


def chat_template(reasoning: Reasoning) -> str:
    """The template that treats reasoning so."""
    return _SWITCH.sub(f"set reasoning = '{reasoning}'", CHAT_TEMPLATE)


def reasoning_of(folder: Path) -> Reasoning:
    """What the chat template in a tokenizer's or model's folder does with reasoning; "keep" without one."""
    path = folder / TEMPLATE_FILE
    found = _SWITCH.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    return next((word for word in get_args(Reasoning) if found and word == found[1]), "keep")


def write_template(folder: Path, reasoning: Reasoning) -> None:
    """Give the tokenizer in `folder` the template that treats reasoning so; nothing changes for its own."""
    if reasoning == reasoning_of(folder):
        return
    (folder / TEMPLATE_FILE).write_text(chat_template(reasoning), encoding="utf-8")
    path = folder / TEMPLATE_CONFIG
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        config["chat_template"] = chat_template(reasoning)
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def why_another_template(folder: Path) -> str | None:
    """What the template in `folder` lacks of ours, in words; None where it is ours or there is none.

    It stands in two files, and readers take either.
    """
    ours = {chat_template(word) for word in get_args(Reasoning)}
    text = next((found for found in _templates_in(folder) if found not in ours), None)
    if text is None:
        return None
    wanted = ("<|im_start|>", "<|im_end|>", "<tool_call>", "<tool_response>", "{%- generation %}")
    missing = [marker for marker in wanted if marker not in text]
    return f"it lacks {', '.join(missing)}" if missing else "it differs from ours"


def _templates_in(folder: Path) -> Iterator[str]:
    if (folder / TEMPLATE_FILE).is_file():
        yield (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    if (folder / TEMPLATE_CONFIG).is_file():
        found = json.loads((folder / TEMPLATE_CONFIG).read_text(encoding="utf-8")).get("chat_template")
        if isinstance(found, str):
            yield found
