"""Byte acceptors for what may stand between the quotes of a tool call's argument.

Each form is a small automaton over bytes with immutable states: `advance(state, byte)` gives the next
state, or None where the byte cannot stand. `closing(state)` gives the shortest bytes that complete the text,
b"" if it is complete already; knowing them at any moment is what lets a bounded argument always end.

Regular patterns constrain characters, not meaning ("4 /01)*( --7" has only arithmetic characters), so the
calculator's form counts its parentheses: it is a pushdown automaton whose stack is one number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

DIGITS = frozenset(b"0123456789")
HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")
NAME_START = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
NAME_NEXT = NAME_START | DIGITS
SHORT_ESCAPES = frozenset(b'"\\/bfnrt')


class ArgumentForm(Protocol):
    """What a form must offer. States are hashable and compare by value."""

    @property
    def start(self) -> Any:
        """The state before the first byte."""

    def advance(self, state: Any, byte: int) -> Any | None:
        """The state after `byte` (0..255), or None where it may not stand."""

    def closing(self, state: Any) -> bytes:
        """The shortest bytes that make the text complete; b"" when it is."""


class TextState(NamedTuple):
    """`wait` names what must come next; `low`, `high`, `more` belong to a character in several bytes."""

    wait: str = "first"
    low: int = 0
    high: int = 0
    more: int = 0


@dataclass(frozen=True)
class JsonText:
    """Any non-empty JSON string (RFC 8259 section 7): escapes, and UTF-8 as in RFC 3629.

    Control characters must be escaped, overlong forms and encoded surrogates are refused, and an escaped
    high surrogate must be followed by an escaped low one: what passes has a UTF-8 form of its own.

    trimmed: it may not begin with a space. A word in a sentence comes with the space before it as one token,
    so a small model that copies it tends to copy the space as well.
    """

    trimmed: bool = False
    start: ClassVar[TextState] = TextState("first")
    inside: ClassVar[TextState] = TextState("any")

    def advance(self, state: TextState, byte: int) -> TextState | None:
        """See `ArgumentForm`."""
        if state.wait in ("first", "any"):
            return None if self.trimmed and state.wait == "first" and byte == 0x20 else self._character(byte)
        if state.wait == "continuation":
            return self._continuation(state, byte)
        if state.wait == "escape":
            return self._escape(byte)
        if state.wait in ("low backslash", "low u"):
            expected, following = (0x5C, "low u") if state.wait == "low backslash" else (0x75, "low hex 0")
            return TextState(following) if byte == expected else None
        return self._hex(state, byte)

    def closing(self, state: TextState) -> bytes:
        """See `ArgumentForm`."""
        if state.wait == "continuation":
            return bytes([state.low]) + b"\x80" * state.more
        return b"-" if self.trimmed and state.wait == "first" else _TEXT_CLOSINGS[state.wait]

    def _character(self, byte: int) -> TextState | None:
        if byte == 0x5C:
            return TextState("escape")
        if byte < 0x80:
            return self.inside if byte >= 0x20 and byte != 0x22 else None
        return _LEAD_BYTES.get(byte)

    def _continuation(self, state: TextState, byte: int) -> TextState | None:
        if not state.low <= byte <= state.high:
            return None
        return TextState("continuation", 0x80, 0xBF, state.more - 1) if state.more else self.inside

    def _escape(self, byte: int) -> TextState | None:
        if byte == 0x75:
            return TextState("hex 0")
        return self.inside if byte in SHORT_ESCAPES else None

    def _hex(self, state: TextState, byte: int) -> TextState | None:
        if byte not in HEX_DIGITS:
            return None
        return _HEX_STEPS[state.wait](int(chr(byte), 16))


# `hex N` waits for digit N of an escape that may be anything; `high N` and `low N` are inside a surrogate
# pair, and "hex 1 d" has seen the `d` that makes a surrogate possible.
_TEXT_CLOSINGS = {
    "first": b" ",
    "any": b"",
    "escape": b"n",
    "hex 0": b"0020",
    "hex 1": b"020",
    "hex 1 d": b"020",
    "hex 2": b"20",
    "hex 3": b"0",
    "high 2": b"00\\udc00",
    "high 3": b"0\\udc00",
    "low backslash": b"\\udc00",
    "low u": b"udc00",
    "low hex 0": b"dc00",
    "low hex 1": b"c00",
    "low hex 2": b"00",
    "low hex 3": b"0",
}


def _after_surrogate_d(digit: int) -> TextState | None:
    if digit < 8:
        return TextState("hex 2")
    return TextState("high 2") if digit < 12 else None  # \udc00..\udfff may not come first


_HEX_STEPS: dict[str, Callable[[int], TextState | None]] = {
    "hex 0": lambda digit: TextState("hex 1 d" if digit == 13 else "hex 1"),
    "hex 1": lambda digit: TextState("hex 2"),
    "hex 1 d": _after_surrogate_d,
    "hex 2": lambda digit: TextState("hex 3"),
    "hex 3": lambda digit: JsonText.inside,
    "high 2": lambda digit: TextState("high 3"),
    "high 3": lambda digit: TextState("low backslash"),
    "low hex 0": lambda digit: TextState("low hex 1") if digit == 13 else None,
    "low hex 1": lambda digit: TextState("low hex 2") if digit >= 12 else None,
    "low hex 2": lambda digit: TextState("low hex 3"),
    "low hex 3": lambda digit: JsonText.inside,
}


def _lead_bytes() -> dict[int, TextState]:
    """UTF-8 lead byte -> the range of its second byte (RFC 3629 section 4) and how many follow that one."""
    ranges = dict.fromkeys(range(0xC2, 0xE0), (0x80, 0xBF, 0))
    ranges |= dict.fromkeys(range(0xE1, 0xF0), (0x80, 0xBF, 1))
    ranges |= dict.fromkeys(range(0xF1, 0xF4), (0x80, 0xBF, 2))
    ranges |= {0xE0: (0xA0, 0xBF, 1), 0xED: (0x80, 0x9F, 1), 0xF0: (0x90, 0xBF, 2), 0xF4: (0x80, 0x8F, 2)}
    return {lead: TextState("continuation", *rest) for lead, rest in ranges.items()}


_LEAD_BYTES = _lead_bytes()


class NameState(NamedTuple):
    """`empty`: the current name of the path has no character yet."""

    empty: bool = True


@dataclass(frozen=True)
class IdentifierPath:
    """Names joined by dots, such as `textwrap.dedent`: ASCII letters, digits and underscores."""

    start: ClassVar[NameState] = NameState()

    def advance(self, state: NameState, byte: int) -> NameState | None:
        """See `ArgumentForm`."""
        if state.empty:
            return NameState(False) if byte in NAME_START else None
        if byte == ord("."):
            return NameState(True)
        return state if byte in NAME_NEXT else None

    def closing(self, state: NameState) -> bytes:
        """See `ArgumentForm`."""
        return b"a" if state.empty else b""


class SumState(NamedTuple):
    """`wait` names the position, `depth` counts open parentheses, `digits` those of the current number."""

    wait: str = "operand"
    depth: int = 0
    digits: int = 0


@dataclass(frozen=True)
class Arithmetic:
    """Arithmetic with + - * / **, parentheses and decimal numbers; every text is a Python expression.

    sum     = operand { [" "] ("+" | "-" | "*" | "/" | "**") [" "] operand }
    operand = ["-"] ( number | "(" sum ")" )
    number  = ( "0" | nonzero { digit } ) [ "." digit { digit } ]
    """

    max_depth: int = 4
    max_digits: int = 12
    start: ClassVar[SumState] = SumState()

    def advance(self, state: SumState, byte: int) -> SumState | None:
        """See `ArgumentForm`."""
        if state.wait in ("operand", "operand after sign", "operand after space"):
            return self._operand(state, byte)
        if state.wait == "second star" and byte == ord("*"):
            return SumState("operator done", state.depth)
        if state.wait in ("operator done", "second star"):
            spaced = byte == ord(" ")
            return SumState("operand after space", state.depth) if spaced else self._operand(state, byte)
        if state.wait == "operator":
            return self._operator(state, byte)
        return self._number(state, byte)

    def closing(self, state: SumState) -> bytes:
        """See `ArgumentForm`."""
        parentheses = b")" * state.depth
        if state.wait in ("zero", "integer", "fraction", "closed"):
            return parentheses
        return (b"+0" if state.wait == "operator" else b"0") + parentheses

    def _operand(self, state: SumState, byte: int) -> SumState | None:
        if byte == ord("("):
            return SumState("operand", state.depth + 1) if state.depth < self.max_depth else None
        if byte == ord("-"):
            return SumState("operand after sign", state.depth) if state.wait != "operand after sign" else None
        if byte in DIGITS:
            return SumState("zero" if byte == ord("0") else "integer", state.depth, 1)
        return None

    def _number(self, state: SumState, byte: int) -> SumState | None:
        """After at least one character of an operand: more of it, or what may follow it."""
        if state.wait == "point":
            return SumState("fraction", state.depth, 1) if byte in DIGITS else None
        if byte in DIGITS and state.wait in ("integer", "fraction"):
            return state._replace(digits=state.digits + 1) if state.digits < self.max_digits else None
        if byte == ord(".") and state.wait in ("zero", "integer"):
            return SumState("point", state.depth)
        if byte == ord(")"):
            return SumState("closed", state.depth - 1) if state.depth else None
        return SumState("operator", state.depth) if byte == ord(" ") else self._operator(state, byte)

    def _operator(self, state: SumState, byte: int) -> SumState | None:
        if byte == ord("*"):
            return SumState("second star", state.depth)
        return SumState("operator done", state.depth) if byte in b"+-/" else None
