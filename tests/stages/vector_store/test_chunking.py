"""Chunks: exact offsets, nothing lost, within the budget, under their headings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.vector_store.chunking import Chunker, Span, sentences


class WordsAndSigns:
    """A token per word of up to four letters, per sign, and per run of spaces; long words are cut."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[1] * len(re.findall(r"\w{1,4}|\s+|[^\w\s]", text)) for text in texts]


class SpaceIsFree:
    """As SentencePiece: a space before a word costs nothing, a word without one costs two tokens more."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [
            [1] * (len(re.findall(r"\s\S+|\s", text)) + 3 * bool(re.match(r"\S", text))) for text in texts
        ]


def cut(text: str, max_tokens: int = 16, overlap_tokens: int = 4) -> list[Span]:
    spans = Chunker(WordsAndSigns(), max_tokens, overlap_tokens).cut(text)
    check(text, spans, max_tokens)
    return spans


def check(text: str, spans: list[Span], max_tokens: int) -> None:
    """What holds for every text."""
    covered = set()
    for span in spans:
        assert 0 <= span.start < span.end <= len(text)
        assert text[span.start : span.end] == text[span.start : span.end].strip()
        assert span.num_tokens <= max_tokens
        covered.update(range(span.start, span.end))
    assert all(char.isspace() or place in covered for place, char in enumerate(text))
    assert all(a.start < b.start and a.end < b.end for a, b in pairwise(spans))


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab .\n#。字!\t-=\u3000x"), max_size=400), st.integers(16, 40))
def test_any_text_is_covered_within_the_budget(text: str, max_tokens: int) -> None:
    check(text, Chunker(WordsAndSigns(), max_tokens, max_tokens // 3).cut(text), max_tokens)


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab .\n"), max_size=300))
def test_a_chunk_that_costs_more_alone_is_cut_again(text: str) -> None:
    check(text, Chunker(SpaceIsFree(), 16, 8).cut(text), 16)


def test_a_text_that_fits_is_one_chunk() -> None:
    text = "\n  One line, and that is all.  \n"
    assert cut(text) == [Span(3, 29, 13, ())]


def test_nothing_but_spaces_is_no_chunk() -> None:
    assert cut("") == cut(" \n\t \u3000") == []


def test_overlap_is_whole_sentences() -> None:
    text = "Oil burns. Wind blows. Rain falls. Snow lies. Ice melts. Mud dries. Sun sets."
    spans = cut(text, max_tokens=16, overlap_tokens=6)
    starts = {start for start, _ in sentences(text)}
    assert len(spans) > 2
    for before, after in pairwise(spans):
        assert after.start in starts
        shared = text[after.start : before.end]
        assert shared.endswith(".") and 0 < len(shared) < 20


def test_no_overlap_if_none_is_wanted() -> None:
    text = "Oil burns. Wind blows. Rain falls. Snow lies. Ice melts. Mud dries."
    assert all(a.end <= b.start for a, b in pairwise(cut(text, overlap_tokens=0)))


def test_chunks_carry_the_path_of_their_headings() -> None:
    body = " ".join(["burning oil gives a steady light"] * 2)
    text = f"# Lamp\n{body}\n## Care\n{body}\n### Wick\n{body}\n## Price\n{body}\n"
    paths = [span.heading_path for span in cut(text)]
    assert dict.fromkeys(paths) == dict.fromkeys(
        [("Lamp",), ("Lamp", "Care"), ("Lamp", "Care", "Wick"), ("Lamp", "Price")]
    )


def test_short_sections_travel_together_under_what_they_share() -> None:
    care = "trim the wick when the flame smokes " * 4
    text = f"# Lamp\n## Oil\nfull\n## Wick\nnew\n## Care\n{care}"
    first, *rest = cut(text, max_tokens=32)
    assert first.heading_path == ("Lamp",) and text[first.start : first.end].endswith("new")
    assert {span.heading_path for span in rest} == {("Lamp", "Care")}


def test_chinese_is_cut_at_its_own_full_stops() -> None:
    text = "灯塔建在石堤尽头。" * 12
    spans = Chunker(WordsAndSigns(), 16, 4).cut(text)
    check(text, spans, 16)
    assert len(spans) >= 3
    assert all(text[span.start : span.end].endswith("。") for span in spans)


@pytest.mark.parametrize("piece", ["a", "字", "x y ", "\U0001f600", "a.b"])
def test_a_line_of_a_hundred_thousand_characters(piece: str) -> None:
    """The line goes into as many chunks as it needs, each character into at most two of them."""
    text = piece * (100_000 // len(piece))
    spans = Chunker(WordsAndSigns(), 64, 16).cut(text)
    check(text, spans, 64)
    assert sum(span.end - span.start for span in spans) <= 2 * len(text)
    total = len(WordsAndSigns().encode_batch([text])[0])
    assert len(spans) <= 5 * total / 64 + 1


@pytest.mark.parametrize(("max_tokens", "overlap_tokens"), [(8, 0), (32, 17), (32, -1)])
def test_impossible_budgets_are_refused(max_tokens: int, overlap_tokens: int) -> None:
    with pytest.raises(ValueError, match="at least 16 tokens"):
        Chunker(WordsAndSigns(), max_tokens, overlap_tokens)


def test_sentences_leave_no_gap() -> None:
    text = "One. Two!  Three?\nFour: 3.5 or e.g.five。六！七"
    borders = sentences(text)
    assert "".join(text[a:b] for a, b in borders) == text
    assert [text[a:b].strip() for a, b in borders] == [
        "One.", "Two!", "Three?", "Four: 3.5 or e.g.five。", "六！", "七",
    ]  # fmt: skip
