"""Decoding under a grammar: a tool call that a model writes always parses and always fits its tool.

The model writes freely until it emits the control token `<tool_call>`; from there on only tokens that keep

    {"name": "TOOL", "arguments": {"ARGUMENT": "TEXT"}}

completable are left to it, then `</tool_call>`, then `<|im_end|>`. The grammar works on bytes
(`CallGrammar`); `TokenMasks` lifts it to a vocabulary by walking the trie of the tokens' bytes once per
grammar state; `ToolCallConstraint` follows one turn and sees to it that a call ends within the token budget.

Two bounds hold at once, and both are numbers per token, so that a mask is two vector comparisons:
`bytes_needed_V`, how much room the argument must still have, and `tokens_needed_V`, how many tokens the
shortest way to the end takes after this one. Control tokens have no bytes: they never stand inside a call.

V is the vocabulary. The idea of masks from a token trie: Willard and Louf 2023, arXiv:2307.09702; here the
states are computed on demand, because an argument's form may count (parentheses) and so has no finite table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from stages.whitebox.argument_forms import ArgumentForm

CALL_OPEN, CALL_CLOSE, TURN_END = "<tool_call>", "</tool_call>", "<|im_end|>"
QUOTE = ord('"')
NEVER = 2**14
"""Stands for infinity in the per-token numbers."""


@dataclass(frozen=True)
class Argument:
    """One string argument: its name, what may stand in it, and its longest encoded form in bytes."""

    name: str
    form: ArgumentForm
    max_bytes: int = 96


@dataclass(frozen=True)
class ToolSignature:
    """A tool's name and its arguments in the order in which calls write them."""

    name: str
    arguments: tuple[Argument, ...]

    def literals(self) -> tuple[bytes, ...]:
        """The fixed text before each argument's value, and after the last one."""
        heads = [f'", "{argument.name}": "' for argument in self.arguments]
        heads[0] = f'{{"name": "{self.name}", "arguments": {{{heads[0][3:]}'
        return (*(head.encode() for head in heads), b'"}}')


class CallState(NamedTuple):
    """Where a call stands: inside `written` bytes of a literal (`inner` is None) or inside an argument.

    tool: index of the tool, -1 while the name could still be several; segment: index of the literal, or of
    the argument; left: bytes that the argument may still take.
    """

    tool: int
    segment: int
    written: bytes
    inner: Any | None
    left: int


START = CallState(-1, 0, b"", None, 0)
ROOMY = 10**6


class CallGrammar:
    """Accepts exactly the calls of the given tools, written as `json.dumps` writes them."""

    def __init__(self, tools: Sequence[ToolSignature]) -> None:
        if not tools or any(not tool.arguments for tool in tools):
            raise ValueError("expected at least one tool, each with at least one argument")
        self.tools = tuple(tools)
        self.literals = tuple(tool.literals() for tool in tools)
        self.closing = lru_cache(maxsize=None)(self._closing)

    def advance(self, state: CallState, byte: int) -> CallState | None:
        """The state after one more byte, or None where no call goes on that way."""
        if state.inner is not None:
            return self._in_argument(state, byte)
        written = state.written + bytes([byte])
        if state.tool >= 0:
            fits = self.literals[state.tool][state.segment].startswith(written)
            return self._in_literal(state.tool, state.segment, written) if fits else None
        matching = self._tools_opening_with(written)
        if len(matching) == 1:
            return self._in_literal(matching[0], 0, written)
        return CallState(-1, 0, written, None, 0) if matching else None

    def is_complete(self, state: CallState) -> bool:
        """Whether the call ends here."""
        return state.inner is None and state.tool >= 0 and state.written == self.literals[state.tool][-1]

    def accepts(self, text: bytes) -> bool:
        """Whether `text` is one whole call."""
        state: CallState | None = START
        for byte in text:
            state = self.advance(state, byte) if state is not None else None
        return state is not None and self.is_complete(state)

    def reserved(self, state: CallState) -> int:
        """Bytes that the argument under way still needs to be complete; 0 outside arguments."""
        if state.inner is None:
            return 0
        return len(self.tools[state.tool].arguments[state.segment].form.closing(state.inner))

    def _tools_opening_with(self, written: bytes) -> list[int]:
        return [tool for tool, parts in enumerate(self.literals) if parts[0].startswith(written)]

    def _in_literal(self, tool: int, segment: int, written: bytes) -> CallState:
        arguments = self.tools[tool].arguments
        if written != self.literals[tool][segment] or segment == len(arguments):
            return CallState(tool, segment, written, None, 0)
        return CallState(tool, segment, b"", arguments[segment].form.start, arguments[segment].max_bytes)

    def _in_argument(self, state: CallState, byte: int) -> CallState | None:
        form = self.tools[state.tool].arguments[state.segment].form
        inner = form.advance(state.inner, byte)
        if inner is not None:
            moved = state._replace(inner=inner, left=state.left - 1)
            return moved if moved.left >= self.reserved(moved) else None
        if byte == QUOTE and not form.closing(state.inner):
            return self._in_literal(state.tool, state.segment + 1, b'"')
        return None

    def _closing(self, state: CallState) -> bytes:
        """The shortest bytes that complete a call from here."""
        if state.tool < 0:
            candidates = self._tools_opening_with(state.written)
            return min((self._tail(tool, 0, state.written) for tool in candidates), key=len)
        if state.inner is None:
            return self._tail(state.tool, state.segment, state.written)
        form = self.tools[state.tool].arguments[state.segment].form
        return form.closing(state.inner) + self._tail(state.tool, state.segment + 1, b"")

    def _tail(self, tool: int, segment: int, written: bytes) -> bytes:
        forms = [argument.form for argument in self.tools[tool].arguments]
        rest = self.literals[tool][segment][len(written) :]
        for index in range(segment, len(forms)):
            rest += forms[index].closing(forms[index].start) + self.literals[tool][index + 1]
        return rest


class Vocabulary(Protocol):
    """What the masks need to know of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    def token_bytes(self, token_id: int) -> bytes:
        """The token's bytes; b"" for control tokens."""

    def special_id(self, piece: str) -> int:
        """Id of a control token."""


@dataclass
class TrieNode:
    """One byte string: the ids of the tokens that are exactly it, and its one-byte extensions."""

    token_ids: list[int] = field(default_factory=list)
    children: dict[int, TrieNode] = field(default_factory=dict)


class TokenReach(NamedTuple):
    """For one grammar state, per token: room the argument must have, and tokens to the end afterwards."""

    bytes_needed_V: Tensor
    tokens_needed_V: Tensor


class TokenMasks:
    """Which tokens may come next, for each state of a grammar, over one vocabulary.

    Results are kept per state without its `left`, so a long text costs one walk of the trie and not one per
    token. `width` is the model's number of logits where that is more than the vocabulary (padding is masked).
    Raises ValueError where the vocabulary cannot write some byte that a call may need.
    """

    def __init__(self, grammar: CallGrammar, vocabulary: Vocabulary, width: int | None = None) -> None:
        self.grammar = grammar
        self.width = width or vocabulary.vocab_size
        self.pieces = [vocabulary.token_bytes(token) for token in range(vocabulary.vocab_size)]
        self.call_open, self.call_close, self.turn_end = (
            vocabulary.special_id(piece) for piece in (CALL_OPEN, CALL_CLOSE, TURN_END)
        )
        self.trie = self._build_trie()
        self.tokens_to_write = lru_cache(maxsize=None)(self._tokens_to_write)
        self.minimum_call_tokens = self.tokens_to_close(START)
        self.free_V = torch.zeros(self.width, dtype=torch.bool)
        self.free_V[[token for token, piece in enumerate(self.pieces) if piece]] = True
        self._reach: dict[CallState, TokenReach] = {}

    def advance(self, state: CallState, token_id: int) -> CallState | None:
        """The state after a whole token, or None; a control token has no bytes and gives None."""
        following: CallState | None = state
        for byte in self.pieces[token_id]:
            following = self.grammar.advance(following, byte) if following is not None else None
        return following if self.pieces[token_id] else None

    def tokens_to_close(self, state: CallState) -> int:
        """Tokens that surely suffice to complete the call from `state`, without the closing control token."""
        return self.tokens_to_write(self.grammar.closing(state._replace(left=0)))

    def allowed_V(self, state: CallState, tokens_left: int) -> Tensor:
        """bool [V]: tokens after which the call can still be completed with `tokens_left` - 1 more tokens."""
        shape = state._replace(left=ROOMY if state.inner is not None else 0)
        reach = self._reach.get(shape)
        if reach is None:
            reach = self._reach[shape] = self._measure(shape)
        room = min(state.left, NEVER - 1) if state.inner is not None else 0
        return (reach.bytes_needed_V <= room) & (reach.tokens_needed_V < min(tokens_left, NEVER))

    def _build_trie(self) -> TrieNode:
        root = TrieNode()
        for token, piece in enumerate(self.pieces):
            node = root
            for byte in piece:
                node = node.children.setdefault(byte, TrieNode())
            if piece:
                node.token_ids.append(token)
        return root

    def _tokens_to_write(self, text: bytes) -> int:
        """Fewest tokens whose bytes are `text`: a shortest path over its positions."""
        fewest = [0] + [NEVER] * len(text)
        for begin in range(len(text)):
            node = self.trie
            for end in range(begin, len(text)):
                if text[end] not in node.children:
                    break
                node = node.children[text[end]]
                if node.token_ids:
                    fewest[end + 1] = min(fewest[end + 1], fewest[begin] + 1)
        if fewest[-1] >= NEVER:
            raise ValueError(f"no tokens of this vocabulary write {text!r}; train it with byte fallback")
        return fewest[-1]

    def _measure(self, start: CallState) -> TokenReach:
        ids, bytes_needed, tokens_needed = [], [], []
        for token_ids, state, needed in self._walk(start):
            ids += token_ids
            bytes_needed += [needed] * len(token_ids)
            tokens_needed += [self.tokens_to_close(state)] * len(token_ids)
        return TokenReach(self._spread(ids, bytes_needed), self._spread(ids, tokens_needed))

    def _spread(self, ids: list[int], values: list[int]) -> Tensor:
        """One vector over the vocabulary, NEVER where no value is given; written at once, not per token."""
        spread_V = torch.full((self.width,), NEVER, dtype=torch.int16)
        spread_V[torch.tensor(ids, dtype=torch.long)] = torch.tensor(values, dtype=torch.int16)
        return spread_V

    def _walk(self, start: CallState) -> Iterator[tuple[list[int], CallState, int]]:
        """Yield (token ids, state after them, argument bytes needed) for every token that may follow."""
        pending: list[tuple[TrieNode, CallState, int]] = [(self.trie, start, 0)]
        while pending:
            node, state, needed = pending.pop()
            if node.token_ids:
                yield node.token_ids, state, needed
            for byte, child in node.children.items():
                following = self.grammar.advance(state, byte)
                if following is None:
                    continue
                room = needed
                if following.inner is not None and following[:2] == start[:2]:
                    room = max(needed, start.left - following.left + self.grammar.reserved(following))
                pending.append((child, following, room))


class ToolCallConstraint:
    """Follows one assistant turn token by token; implements generate's `TokenConstraint`.

    masks: shared by all turns of a model. max_new_tokens: the turn's budget, `<|im_end|>` included; a call
    that is begun is also closed within it. allow_calls=False leaves text only.
    """

    def __init__(self, masks: TokenMasks, max_new_tokens: int, allow_calls: bool = True) -> None:
        self.masks = masks
        self.tokens_left = max_new_tokens
        self.allow_calls = allow_calls
        self.phase = "text"
        self.state = START

    def allowed_V(self) -> Tensor:
        """bool [V] of the tokens that may come next; never all False."""
        masks = self.masks
        if self.phase == "text":
            allowed = masks.free_V.clone()
            allowed[masks.turn_end] = True
            # The call itself, its two control tokens, and the end of the turn.
            allowed[masks.call_open] = self.allow_calls and self.tokens_left >= masks.minimum_call_tokens + 3
            return allowed
        if self.phase == "call" and not masks.grammar.is_complete(self.state):
            return masks.allowed_V(self.state, self.tokens_left - 2)
        forced = torch.zeros(masks.width, dtype=torch.bool)
        forced[masks.call_close if self.phase == "call" else masks.turn_end] = True
        return forced

    def accept(self, token_id: int) -> None:
        """Move on by one token. Raises ValueError for one that the grammar does not allow here."""
        self.tokens_left -= 1
        if self.phase == "text":
            self.phase = {self.masks.call_open: "call", self.masks.turn_end: "done"}.get(token_id, "text")
        elif self.phase == "call" and token_id == self.masks.call_close:
            self._require(self.masks.grammar.is_complete(self.state), token_id)
            self.phase = "closed"
        elif self.phase == "call":
            following = self.masks.advance(self.state, token_id)
            self._require(following is not None, token_id)
            self.state = following or START
        else:
            self._require(token_id == self.masks.turn_end, token_id)
            self.phase = "done"

    def _require(self, holds: bool, token_id: int) -> None:
        if not holds:
            raise ValueError(f"token {token_id} cannot stand here: phase {self.phase!r}, state {self.state}")
