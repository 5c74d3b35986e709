"""A trained model as a partner in a conversation: messages in, one turn out, tool calls under the grammar."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stages.whitebox.chat_format import parse_completion, render
from stages.whitebox.checkpoint import load_model
from stages.whitebox.generate import stream
from stages.whitebox.model import CausalLM
from stages.whitebox.quantized_checkpoint import load_quantized
from stages.whitebox.tokenizer import Tokenizer
from stages.whitebox.tool_grammar import CallGrammar, TokenMasks, ToolCallConstraint

Message = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """What the assistant wrote: text, what it thought before, and at most one tool call.

    malformed: a call was begun that is no {"name", "arguments"}; its raw text is in `text`.
    finished: the turn ended by itself and not because its tokens ran out.
    """

    text: str
    call: dict[str, Any] | None = None
    malformed: bool = False
    finished: bool = True
    num_tokens: int = 0
    reasoning: str = ""


class Assistant:
    """Model, tokenizer and grammar together; with `allow_calls` False it can only talk.

    With `enable_thinking` False its turns begin behind an empty block of reasoning, as Qwen3 has it.
    """

    enable_thinking = True

    def __init__(
        self, model: CausalLM, tokenizer: Tokenizer, grammar: CallGrammar, allow_calls: bool = True
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.masks = TokenMasks(grammar, tokenizer, model.config.vocab_size)
        self.allow_calls = allow_calls

    def turn(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> Turn:
        """The assistant's next turn, greedy unless a temperature is given.

        `on_text` gets the free text piece by piece while it is written. A conversation that fills the model's
        context gives an empty, unfinished turn.
        """
        prompt_ids = self.prompt_ids(messages)
        room = min(max_new_tokens, self.context_tokens - len(prompt_ids))
        if room < 2:
            return Turn("", finished=False)
        shown = TextStream(self.tokenizer, on_text)
        new_ids: list[int] = []
        tokens = stream(
            self.model,
            prompt_ids,
            max_new_tokens=room,
            stop_ids=self.stop_ids,
            temperature=temperature,
            seed=seed,
            constraint=ToolCallConstraint(self.masks, room, self.allow_calls),
        )
        for token in tokens:
            new_ids.append(token)
            shown.add(token)
        return self._parse(new_ids, finished=len(new_ids) < room)

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids that the model continues with its turn."""
        thinking = self.enable_thinking
        return render(messages, self.tokenizer, add_generation_prompt=True, enable_thinking=thinking).ids

    @property
    def context_tokens(self) -> int:
        """Most tokens of a conversation, the turn to be written included."""
        return self.model.config.max_position_embeddings

    @property
    def stop_ids(self) -> set[int]:
        """The ends of a turn and of a document."""
        return {self.tokenizer.special_id("<|im_end|>"), self.tokenizer.eos_id}

    def _parse(self, ids: list[int], finished: bool) -> Turn:
        message = parse_completion(ids, self.tokenizer)
        calls = message["tool_calls"]
        malformed = self.tokenizer.special_id("<tool_call>") in ids and not calls
        call = calls[0] if calls else None
        reasoning = message.get("reasoning_content", "")
        return Turn(message["content"].strip(), call, malformed, finished, len(ids), reasoning)


class TextStream:
    """Hands free text on as it comes, whole characters only; what a tool call holds is not text."""

    def __init__(self, tokenizer: Tokenizer, on_text: Callable[[str], None] | None) -> None:
        self.tokenizer = tokenizer
        self.on_text = on_text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._in_call = False

    def add(self, token: int) -> None:
        """Take one more token."""
        self._in_call = self._in_call or token == self.tokenizer.special_id("<tool_call>")
        if self.on_text is None or self._in_call:
            return
        if text := self._decoder.decode(self.tokenizer.token_bytes(token)):
            self.on_text(text)


def load_assistant(model_folder: Path, grammar: CallGrammar, allow_calls: bool = True) -> Assistant:
    """Open a float or a quantized checkpoint and the tokenizer beside it.

    Raises ValueError where the folder holds no model or no tokenizer.
    """
    model = load_any_model(model_folder)
    return Assistant(model, Tokenizer.from_folder(model_folder), grammar, allow_calls)


def load_any_model(folder: Path) -> CausalLM:
    """A float32 model or one with quantized linears, as `folder` holds it. Raises ValueError for neither."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ValueError(f"{folder} holds no model: expected config.json and model.safetensors in it")
    quantized = "quantization_config" in json.loads(config_file.read_text(encoding="utf-8"))
    return load_quantized(folder) if quantized else load_model(folder, dtype=torch.float32)
