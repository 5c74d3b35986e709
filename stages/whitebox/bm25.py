"""BM25 by hand: split text into terms, count them, score a query against every chunk.

Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond", with the idf that
cannot turn negative (as Lucene has it). On questions about code this leg is as strong as a 22M-parameter
encoder; on Chinese it is far stronger, which is why it ships beside the dense one instead of below it.

Shapes: N chunks, V terms, P postings (pairs of a term and a chunk that has it), Q query terms.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

# Scripts written without spaces between words: Thai, kana, Chinese characters. Hangul has spaces, but its
# particles stick to the words, so that pairs of syllables find more than whole words do.
_UNSPACED = (
    "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
# Indic vowel signs are no \w for Python, but part of the word.
_WORD = rf"(?:[^\W{_UNSPACED}]|[\u0900-\u0dff])+"
_TOKEN = re.compile(rf"[{_UNSPACED}]+|{_WORD}(?:\.{_WORD})*")
_STARTS_UNSPACED = re.compile(rf"[{_UNSPACED}]")
# Accents that stand alone after NFKC, Arabic vowel points and the Arabic letter stretcher: spelling, not
# meaning.
_MARKS = re.compile("[\u0300-\u036f\u0640\u064b-\u065f\u0670\u06d6-\u06ed]")
_CAMEL = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")


def split_terms(text: str) -> list[str]:
    """The terms of `text`, in order and with repetitions.

    An identifier counts as a whole and in its parts, so that `itertools.chainFromIterable` is found by its
    full name, by `chainFromIterable`, and by "chain from iterable". Runs of Chinese characters become
    overlapping pairs (Nie et al. 1999 found pairs as good as segmented words). English plurals lose their
    s.
    """
    if not text.isascii():
        text = _MARKS.sub("", unicodedata.normalize("NFKC", text))
    terms: list[str] = []
    for token in _TOKEN.findall(text):
        terms += _terms_of_token(token)
    return terms


@lru_cache(maxsize=1 << 18)
def _terms_of_token(token: str) -> tuple[str, ...]:
    """Cached, because a corpus repeats its words: this makes indexing five times as fast."""
    if _STARTS_UNSPACED.match(token):
        return tuple(token[i : i + 2] for i in range(max(1, len(token) - 1)))
    names = token.split(".")
    terms = [] if len(names) == 1 else [token.casefold()]
    for name in names:
        parts = split_identifier(name)
        terms += [name.casefold()] if len(parts) > 1 else []
        terms += [_singular(part) for part in parts]
    return tuple(terms)


def split_identifier(name: str) -> list[str]:
    """`_parseHTTPHeader2` -> parse, http, header, 2. Words of other alphabets are split at underscores
    only."""
    pieces = [piece for piece in name.split("_") if piece] or [name]
    parts: list[str] = []
    for piece in pieces:
        parts += _CAMEL.findall(piece) if piece.isascii() else [piece]
    return [part.casefold() for part in parts]


def _singular(word: str) -> str:
    """Drop the English plural s: the weakest stemmer there is (Harman 1991), and the one that harms least."""
    if len(word) < 4 or word[-1] != "s" or not word.isascii() or word[-2] in "su":
        return word
    return word[:-3] + "y" if word.endswith("ies") and len(word) > 4 else word[:-1]


class TermCounter:
    """Turns texts into arrays of term numbers, handing out a number to every new term."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def ids(self, text: str) -> np.ndarray:
        """The term numbers of `text`, int32, in order and with repetitions."""
        numbers = self.numbers
        return np.frombuffer(
            array("i", [numbers.setdefault(term, len(numbers)) for term in split_terms(text)]), dtype=np.int32
        )


@dataclass(frozen=True)
class Bm25Index:
    """An inverted index: for term v, `rows_P[offsets_V1[v] : offsets_V1[v + 1]]` are the chunks that have it.

    `counts_P` says how often, `lengths_N` how many terms each chunk has. k1 is how fast repetitions stop to
    count, b how much long chunks are held back.
    """

    terms: Mapping[str, int]
    offsets_V1: np.ndarray
    rows_P: np.ndarray
    counts_P: np.ndarray
    lengths_N: np.ndarray
    k1: float = 1.2
    b: float = 0.75

    @classmethod
    def from_texts(cls, texts: Iterable[str], k1: float = 1.2, b: float = 0.75) -> Bm25Index:
        """Index `texts`; the position of a text is its row."""
        counter = TermCounter()
        return cls.from_term_ids([counter.ids(text) for text in texts], counter.numbers, k1, b)

    @classmethod
    def from_term_ids(
        cls, ids_per_chunk: Sequence[np.ndarray], numbers: Mapping[str, int], k1: float = 1.2, b: float = 0.75
    ) -> Bm25Index:
        """Index chunks that are term numbers already. Terms are sorted, so that equal texts give equal
        arrays."""
        lengths_N = np.array([len(ids) for ids in ids_per_chunk], dtype=np.int32)
        ordered = sorted(numbers)
        rank_V = np.empty(len(ordered), dtype=np.int64)
        rank_V[[numbers[term] for term in ordered]] = np.arange(len(ordered))
        flat = np.concatenate([np.empty(0, np.int32), *ids_per_chunk])
        row_of = np.repeat(np.arange(len(lengths_N), dtype=np.int64), lengths_N)
        # One sort of (term, row) as a single integer is the whole inversion.
        keys_P, counts_P = np.unique(rank_V[flat] * len(lengths_N) + row_of, return_counts=True)
        term_P, rows_P = np.divmod(keys_P, max(1, len(lengths_N)))
        offsets_V1 = np.searchsorted(term_P, np.arange(len(ordered) + 1))
        return cls(
            {term: number for number, term in enumerate(ordered)},
            offsets_V1.astype(np.int64),
            rows_P.astype(np.int32),
            counts_P.astype(np.int32),
            lengths_N,
            k1,
            b,
        )

    @cached_property
    def _impacts_P(self) -> np.ndarray:
        """What each posting adds to the score of its chunk: everything but the query is known beforehand."""
        num_chunks, mean_length = len(self.lengths_N), max(1.0, float(self.lengths_N.mean()))
        df_V = np.diff(self.offsets_V1)
        idf_V = np.log(1 + (num_chunks - df_V + 0.5) / (df_V + 0.5))
        held_back_N = self.k1 * (1 - self.b + self.b * self.lengths_N / mean_length)
        saturated_P = self.counts_P / (self.counts_P + held_back_N[self.rows_P])
        return (np.repeat(idf_V, df_V) * saturated_P).astype(np.float32)

    def scores(self, query: str) -> np.ndarray:
        """BM25 score of every chunk for `query`: scores_N, float32, 0 where no term matches.

        A term that the query repeats counts that often. Like Lucene we leave out the constant factor k1 + 1.
        """
        scores_N: np.ndarray = np.zeros(len(self.lengths_N), dtype=np.float32)
        for term, times in Counter(split_terms(query)).items():
            number = self.terms.get(term)
            if number is not None:
                span = slice(self.offsets_V1[number], self.offsets_V1[number + 1])
                scores_N[self.rows_P[span]] += times * self._impacts_P[span]
        return scores_N
