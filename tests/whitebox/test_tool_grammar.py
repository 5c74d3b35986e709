"""Whatever a model prefers, a call under the grammar parses and fits its tool."""

from __future__ import annotations

import ast
import json
import random
import re
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.whitebox.argument_forms import ArgumentForm, Arithmetic, IdentifierPath, JsonText
from stages.whitebox.tool_grammar import (
    START,
    Argument,
    CallGrammar,
    TokenMasks,
    ToolCallConstraint,
    ToolSignature,
)

TOOLS = (
    ToolSignature("calculator", (Argument("expression", Arithmetic(), 40),)),
    ToolSignature("lookup", (Argument("symbol", IdentifierPath(), 48),)),
    ToolSignature("search", (Argument("query", JsonText(trimmed=True), 48),)),
)
CONTROL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
SAMPLE = (
    'What does textwrap.dedent do? {"name": "calculator", "arguments": {"expression": "12*(3+4)"}} '
    "search the docs for os.path.join and collections.OrderedDict; 今天天气很好，我们去公园散步。"
    'مرحبا بالعالم {"name": "search", "arguments": {"query": "line \\u00e9 \\n"}} 1000 365 24 () "}}'
)


class PieceVocabulary:
    """Control tokens, all 256 bytes, and pieces cut from a sample until there are `size` tokens."""

    def __init__(self, size: int, seed: int = 0) -> None:
        generator = random.Random(seed)
        text = SAMPLE.encode()
        pieces = [b""] * len(CONTROL) + [bytes([byte]) for byte in range(256)]
        words = sorted({text[i : i + n] for i in range(len(text)) for n in range(2, 17)})
        generator.shuffle(words)
        while len(words) < size:
            words.append(generator.choice(words) + generator.choice(words)[:6])
        self.pieces = (pieces + words)[:size]

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]

    def special_id(self, piece: str) -> int:
        return CONTROL.index(piece)


@lru_cache(maxsize=2)
def masks_for(size: int) -> TokenMasks:
    return TokenMasks(CallGrammar(TOOLS), PieceVocabulary(size))


def random_call(masks: TokenMasks, budget: int, generator: torch.Generator) -> tuple[str, int]:
    """A call by a model with random logits: its text, and the tokens left when the turn has ended."""
    constraint = ToolCallConstraint(masks, budget)
    constraint.accept(masks.call_open)
    written = b""
    while constraint.phase != "done":
        logits_V = torch.randn(masks.width, generator=generator)
        token = int(logits_V.masked_fill(~constraint.allowed_V(), -torch.inf).argmax())
        constraint.accept(token)
        written += masks.pieces[token]
    return written.decode("utf-8"), constraint.tokens_left


def check_schema(call: dict[str, Any]) -> None:
    tool = {signature.name: signature for signature in TOOLS}[call["name"]]
    assert list(call) == ["name", "arguments"]
    assert list(call["arguments"]) == [argument.name for argument in tool.arguments]
    (value,) = call["arguments"].values()
    assert isinstance(value, str) and value
    if tool.name == "calculator":
        ast.parse(value, mode="eval")
    if tool.name == "lookup":
        assert all(name.isidentifier() for name in value.split("."))


@pytest.mark.parametrize(("size", "budget"), [(264, 140), (1024, 60), (8192, 36)])
def test_every_call_of_a_random_model_parses_and_ends_within_its_budget(size: int, budget: int) -> None:
    masks = masks_for(size)
    generator = torch.Generator().manual_seed(size)
    tightest = masks.minimum_call_tokens + 3
    for attempt in range(100):
        text, left = random_call(masks, tightest if attempt % 4 == 0 else budget, generator)
        check_schema(json.loads(text))
        assert left >= 0


def test_a_biased_model_cannot_run_away_inside_an_argument() -> None:
    masks = masks_for(1024)
    text_token = masks.pieces.index(b"a")
    constraint = ToolCallConstraint(masks, 400)
    constraint.accept(masks.call_open)
    written = b""
    while constraint.phase != "done":
        allowed_V = constraint.allowed_V()
        token = text_token if allowed_V[text_token] else int(allowed_V.int().argmax())
        constraint.accept(token)
        written += masks.pieces[token]
    (value,) = json.loads(written)["arguments"].values()
    assert 40 <= len(value.encode()) <= 48


def test_control_tokens_never_stand_inside_a_call() -> None:
    masks = masks_for(1024)
    control = [token for token, piece in enumerate(masks.pieces) if not piece]
    constraint = ToolCallConstraint(masks, 200)
    constraint.accept(masks.call_open)
    for byte in b'{"name": "search", "arguments": {"query": "x':
        assert not constraint.allowed_V()[control].any()
        constraint.accept(masks.pieces.index(bytes([byte])))
    assert not constraint.allowed_V()[control].any()


def test_free_text_may_begin_a_call_or_end_and_nothing_else_that_is_control() -> None:
    masks = masks_for(1024)
    allowed_V = ToolCallConstraint(masks, 200).allowed_V()
    control = {token for token, piece in enumerate(masks.pieces) if not piece}
    assert {token for token in control if allowed_V[token]} == {masks.call_open, masks.turn_end}
    assert allowed_V[[token for token in range(1024) if token not in control]].all()


def test_no_call_is_begun_that_could_not_end() -> None:
    masks = masks_for(1024)
    enough = masks.minimum_call_tokens + 3
    assert ToolCallConstraint(masks, enough).allowed_V()[masks.call_open]
    assert not ToolCallConstraint(masks, enough - 1).allowed_V()[masks.call_open]
    assert not ToolCallConstraint(masks, 200, allow_calls=False).allowed_V()[masks.call_open]


def test_after_the_call_only_its_end_and_the_turns_end_are_left() -> None:
    masks = masks_for(1024)
    constraint = ToolCallConstraint(masks, 200)
    constraint.accept(masks.call_open)
    for byte in b'{"name": "lookup", "arguments": {"symbol": "os.path"}}':
        constraint.accept(masks.pieces.index(bytes([byte])))
    assert constraint.allowed_V().nonzero().flatten().tolist() == [masks.call_close]
    constraint.accept(masks.call_close)
    assert constraint.allowed_V().nonzero().flatten().tolist() == [masks.turn_end]


@pytest.mark.parametrize("token", [b"z", b"", b'{"query'])
def test_a_token_that_the_grammar_forbids_is_refused(token: bytes) -> None:
    masks = masks_for(8192)
    constraint = ToolCallConstraint(masks, 200)
    constraint.accept(masks.call_open)
    with pytest.raises(ValueError, match="cannot stand here"):
        constraint.accept(masks.pieces.index(token))


def test_masks_agree_with_walking_each_token_alone() -> None:
    masks = masks_for(8192)
    prefixes = [b"", b'{"name": "', b'{"name": "search", "arguments": {"query": "', b'{"name": "calculator"']
    prefixes += [prefixes[2] + b"abc\xe4\xbb", prefixes[2] + b"x" * 45, prefixes[2] + b"\\ud83d"]
    prefixes += [
        b'{"name": "calculator", "arguments": {"expression": "' + rest for rest in (b"(1+", b"2*", b"")
    ]
    for prefix in prefixes:
        state = START
        for byte in prefix:
            state = masks.grammar.advance(state, byte) or pytest.fail(f"{prefix!r} was refused")
        expected = [masks.advance(state, token) is not None for token in range(masks.width)]
        assert masks.allowed_V(state, tokens_left=10_000).tolist() == expected


def test_the_shortest_way_to_the_end_is_one_way_and_grows_by_no_byte() -> None:
    """Following `closing` byte by byte must not change where it leads; the token budget rests on it."""
    masks = masks_for(264)
    generator = torch.Generator().manual_seed(7)
    for _ in range(30):
        text, _ = random_call(masks, 140, generator)
        state = START
        for byte in text.encode():
            state = masks.grammar.advance(state, byte) or pytest.fail(text)
            rest = masks.grammar.closing(state)
            ahead = masks.grammar.advance(state, rest[0]) if rest else None
            assert ahead is None or masks.grammar.closing(ahead) == rest[1:]


def test_a_vocabulary_without_byte_fallback_that_cannot_write_a_call_is_refused() -> None:
    vocabulary = PieceVocabulary(264)
    vocabulary.pieces[vocabulary.pieces.index(b"}")] = b"]"
    with pytest.raises(ValueError, match="train it with byte fallback"):
        TokenMasks(CallGrammar(TOOLS), vocabulary)


def test_a_long_text_costs_one_walk_of_the_trie() -> None:
    """What makes masks quick: lengths are compared per token and are no part of what is kept per state."""
    masks = TokenMasks(CallGrammar(TOOLS), PieceVocabulary(512))
    constraint = ToolCallConstraint(masks, 400)
    constraint.accept(masks.call_open)
    for byte in b'{"name": "search", "arguments": {"query": "x':
        constraint.accept(masks.pieces.index(bytes([byte])))
    constraint.allowed_V()
    walks = len(masks._reach)
    for byte in b"y" * 40:
        constraint.accept(masks.pieces.index(bytes([byte])))
        constraint.allowed_V()
    assert len(masks._reach) == walks


def accepts(form: ArgumentForm, text: bytes) -> bool:
    state = form.start
    for byte in text:
        state = form.advance(state, byte) if state is not None else None
    return state is not None and form.closing(state) == b""


def json_accepts(body: bytes) -> bool:
    """Python's json, strict about UTF-8 on the way in and about lone surrogates on the way out."""
    try:
        value = json.loads(b'"' + body + b'"')
        value.encode("utf-8")
    except ValueError:
        return False
    return isinstance(value, str) and value != ""


JSON_BITS = st.sampled_from(
    [
        *(b"\\", b'"', b"\\u", b"d83d", b"\\ude00", b"\\ud83d", b"00e9", b"\\n", b"\\/", b"a"),
        *(b"\x00", b"\x1f", b"\x7f", b"\xc3\xa9", b"\xe4\xbb\x8a", b"\xf0\x9f\x98\x80"),
        *(b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"),  # a surrogate, overlong, beyond Unicode
    ]
)


@settings(max_examples=600, deadline=None)
@given(st.one_of(st.binary(max_size=12), st.lists(JSON_BITS, max_size=6).map(b"".join)))
def test_json_text_accepts_what_pythons_json_accepts(body: bytes) -> None:
    assert accepts(JsonText(), body) == json_accepts(body)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=6), st.lists(JSON_BITS | st.just(b" "), max_size=6).map(b"".join)))
def test_trimmed_text_is_any_text_that_begins_with_no_space(body: bytes) -> None:
    assert accepts(JsonText(trimmed=True), body) == (json_accepts(body) and not body.startswith(b" "))


@pytest.mark.parametrize("first", ["0000", "00e9", "cfff", "D7FF", "d800", "dbff", "dc00", "dfff", "e000"])
def test_escaped_surrogates_pass_in_pairs_only(first: str) -> None:
    for second in ("", "\\udbff", "\\udc00", "\\uDFFF", "\\ue000", "\\u0041", "x", "\\n"):
        body = f"\\u{first}{second}".encode()
        assert accepts(JsonText(), body) == json_accepts(body)


@settings(max_examples=200, deadline=None)
@given(
    st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable() or text.isascii()), st.booleans()
)
def test_every_call_that_json_writes_is_accepted(text: str, ascii_only: bool) -> None:
    grammar = CallGrammar([ToolSignature("search", (Argument("query", JsonText(), 400),))])
    call = json.dumps({"name": "search", "arguments": {"query": text}}, ensure_ascii=ascii_only)
    assert grammar.accepts(call.encode())


def sums() -> st.SearchStrategy[str]:
    numbers = st.one_of(
        st.integers(0, 99_999).map(str),
        st.tuples(st.integers(0, 99), st.integers(0, 99)).map("{0[0]}.{0[1]}".format),
    )
    operators = st.sampled_from(["+", " + ", "-", " - ", "*", " * ", "/", "**", " ** "])
    return st.recursive(
        numbers,
        lambda inner: st.one_of(
            st.tuples(inner, operators, inner).map("".join),
            inner.map("({})".format),
            inner.filter(lambda text: not text.startswith("-")).map("-{}".format),
        ),
        max_leaves=6,
    )


@settings(max_examples=200, deadline=None)
@given(sums())
def test_arithmetic_accepts_sums(text: str) -> None:
    doubled_sign = re.search(r"[-+*/] ?--|--", text)
    form = Arithmetic(max_depth=12)
    assert accepts(form, text.encode()) or doubled_sign is not None


@settings(max_examples=600, deadline=None)
@given(st.text(alphabet="0123456789.+-*/() ", min_size=1, max_size=10))
def test_arithmetic_accepts_nothing_that_python_cannot_parse(text: str) -> None:
    if accepts(Arithmetic(), text.encode()):
        ast.parse(text, mode="eval")


@pytest.mark.parametrize(
    "text",
    ["4 /01)*( --7", "--2", "2***3", "()", "1 2", "007", "1.", ".5", "2(3)", "a", "1+", "((((((1))))))"],
)
def test_arithmetic_refuses(text: str) -> None:
    assert not accepts(Arithmetic(), text.encode())


@pytest.mark.parametrize(
    ("text", "good"),
    [("os.path", True), ("_a1", True), ("a..b", False), ("1a", False), ("a.", False), ("", False)],
)
def test_identifier_paths(text: str, good: bool) -> None:
    assert accepts(IdentifierPath(), text.encode()) is good


TWO_ARGUMENT_CALLS = [
    (b'{"name": "find", "arguments": {"text": "a", "within": "os"}}', True),
    (b'{"name": "find", "arguments": {"within": "os", "text": "a"}}', False),
    (b'{"name": "find", "arguments": {"text": "a"}}', False),
    (b'{"name": "find", "arguments": {"text": "abcdefghi", "within": "os"}}', False),
    (b'{"name":"find", "arguments": {"text": "a", "within": "os"}}', False),
]


@pytest.mark.parametrize(("text", "good"), TWO_ARGUMENT_CALLS)
def test_arguments_come_in_order_and_within_their_length(text: bytes, good: bool) -> None:
    arguments = (Argument("text", JsonText(), 8), Argument("within", IdentifierPath(), 8))
    assert CallGrammar([ToolSignature("find", arguments)]).accepts(text) is good


def test_a_tool_without_arguments_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one argument"):
        CallGrammar([ToolSignature("now", ())])
