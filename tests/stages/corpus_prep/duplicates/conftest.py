"""Plain references: words by a regular expression, MinHash and Jaccard with Python sets; made texts."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

NUM_HASHES = 112
_WORD = re.compile("[\u3400-\u9fff]|[^\\W_\u3400-\u9fff]+")


def plain_words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def plain_grams(text: str) -> set[tuple[str, ...]]:
    words = plain_words(text)
    size = min(5, len(words))
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)} if words else set()


def plain_jaccard(left: str, right: str) -> float:
    a, b = plain_grams(left), plain_grams(right)
    return len(a & b) / len(a | b) if a and b else 0.0


@cache
def _number(word: str | tuple[str, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(repr(word).encode(), digest_size=8).digest())


def plain_signature(text: str) -> NDArray[np.uint32]:
    """112 smallest values of as many affine hashes of the 5-grams."""
    rng = np.random.default_rng(7)
    factors = rng.integers(1, 2**63, NUM_HASHES, np.uint64) * np.uint64(2) + np.uint64(1)
    shifts = rng.integers(0, 2**63, NUM_HASHES, np.uint64)
    grams = np.array([_number(gram) for gram in plain_grams(text)], np.uint64)
    if not len(grams):
        return np.full(NUM_HASHES, 0xFFFFFFFF, np.uint32)
    values = grams[:, None] * factors + shifts
    return (values >> np.uint64(32)).min(axis=0).astype(np.uint32)


class PlainCorpus:
    """Texts with their signatures, and their words on demand."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.signatures = np.array([plain_signature(text) for text in texts])
        self.fetched: list[int] = []

    def fetch(self, documents: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
        for begin in range(0, len(documents), 7):
            words = [[_number(w) for w in plain_words(self.texts[d])] for d in documents[begin : begin + 7]]
            self.fetched += documents[begin : begin + 7].tolist()
            offsets = np.concatenate(([0], np.cumsum([len(w) for w in words])))
            yield offsets, np.array([n for w in words for n in w], np.uint64)


def _draw(rng: random.Random, chinese: bool) -> str:
    if chinese:
        return chr(0x4E00 + int(3000 * rng.random() ** 2))
    return "".join(rng.choices("abcdefghijklmnop", k=2 + int(3 * rng.random())))


def made_text(rng: random.Random, num_words: int, chinese: bool) -> str:
    return ("" if chinese else " ").join(_draw(rng, chinese) for _ in range(num_words))


def perturbed(rng: random.Random, text: str, fraction: float, chinese: bool) -> str:
    """The text with that share of its words replaced, dropped or doubled."""
    words = list(text) if chinese else text.split()
    changed = []
    for word in words:
        if rng.random() >= fraction:
            changed.append(word)
        else:
            changed += rng.choice(([], [word, word], [_draw(rng, chinese)]))
    return ("" if chinese else " ").join(changed)


@pytest.fixture(scope="session")
def jaccard() -> Callable[[str, str], float]:
    return plain_jaccard


@pytest.fixture(scope="session")
def corpus() -> Callable[[list[str]], PlainCorpus]:
    return PlainCorpus


@pytest.fixture(scope="session")
def make_text() -> Callable[[random.Random, int, bool], str]:
    return made_text


@pytest.fixture(scope="session")
def perturb() -> Callable[[random.Random, str, float, bool], str]:
    return perturbed


@pytest.fixture(scope="session")
def split_plainly() -> Callable[[str], list[str]]:
    return plain_words


@pytest.fixture(scope="session")
def flood() -> Callable[[list[tuple[int, int]]], list[set[int]]]:
    """Connected components of more than one node, by flooding sets."""

    def components(edges: list[tuple[int, int]]) -> list[set[int]]:
        groups: list[set[int]] = []
        for pair in map(set, edges):
            touched = [group for group in groups if group & pair]
            groups = [group for group in groups if not group & pair] + [pair.union(*touched)]
        return sorted(groups, key=min)

    assert components(list(pairwise(range(3)))) == [{0, 1, 2}]
    return components
