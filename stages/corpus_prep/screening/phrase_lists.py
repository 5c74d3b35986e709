"""Words and phrases that the user does not want, named in a file, one a line; what follows a # is a comment.

Entries that begin or end in a Latin letter or a digit count as whole words, whatever their capitals; others,
such as Chinese ones, count wherever they stand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.corpus_prep.screening.phrase_kernels import count_phrases
from stages.corpus_prep.screening.text_buffers import text_buffers
from stages.corpus_prep.screening.url_lists import list_lines
from stages.runtime.errors import UserError

MAX_TABLE_BYTES = 256 << 20
PHRASES_SCHEMA = pa.schema(
    {"listed_phrases": pa.uint32(), "first_listed_phrase": pa.string(), "first_listed_at": pa.int64()}
)


@dataclass(frozen=True)
class PhraseList:
    """Phrases and the automaton that finds them; build with `phrase_list`."""

    phrases: tuple[str, ...]
    columns: NDArray[np.uint8]
    goto: NDArray[np.int32]
    phrase_at: NDArray[np.int32]
    next_match: NDArray[np.int32]
    lengths: NDArray[np.int32]
    is_word: NDArray[np.bool_]

    def count(self, texts: pa.LargeStringArray) -> pa.RecordBatch:
        """PHRASES_SCHEMA of each text: hits, the entry hit first ("" for none) and its byte (-1 for none)."""
        data, offsets = text_buffers(texts)
        tables = (self.columns, self.goto, self.phrase_at, self.next_match, self.lengths, self.is_word)
        hits, first, place = count_phrases(data, offsets, *tables)
        named = [self.phrases[index] if index >= 0 else "" for index in first.tolist()]
        columns = [pa.array(hits.astype(np.uint32)), pa.array(named, pa.string()), pa.array(place)]
        return pa.record_batch(columns, schema=PHRASES_SCHEMA)


def read_phrase_list(paths: Sequence[Path]) -> PhraseList:
    """All entries of some files. Raises UserError."""
    return phrase_list([entry for path in paths for _, entry in list_lines(path, "corpus_prep.word_lists")])


def phrase_list(phrases: Sequence[str]) -> PhraseList:
    """The automaton of some phrases. Raises UserError where its table would pass MAX_TABLE_BYTES."""
    phrases = tuple(dict.fromkeys(phrase.strip() for phrase in phrases if phrase.strip()))
    spelled = [(index, form) for index, phrase in enumerate(phrases) for form in _spellings(phrase)]
    columns = _columns([form for _, form in spelled])
    size = (sum(len(form) for _, form in spelled) + 1) * (int(columns.max(initial=0)) + 1) * 4
    if size > MAX_TABLE_BYTES:
        raise UserError(
            f"{len(phrases):,} listed phrases need a table of {size >> 20:,} MiB, more than"
            f" {MAX_TABLE_BYTES >> 20}",
            hint="shorten corpus_prep.word_lists: drop phrases that hold a shorter one of the list",
        )
    return _automaton(phrases, spelled, columns)


def _spellings(phrase: str) -> list[bytes]:
    """Bytes of a phrase; letters beyond ASCII are tried small, capital, and as they are written."""
    forms = dict.fromkeys((phrase, phrase.lower(), phrase.upper(), phrase.capitalize()))
    return list(dict.fromkeys(form.encode().lower() for form in forms))  # of bytes, ASCII letters only


def _columns(forms: Sequence[bytes]) -> NDArray[np.uint8]:
    """Byte -> column; 0 for bytes that are in no phrase."""
    used = sorted(set(b"".join(forms)))
    columns = np.zeros(256, np.uint8)
    for column, byte in enumerate(used, start=1):
        columns[byte] = column
        columns[bytes([byte]).upper()[0]] = column
    return columns


def _automaton(
    phrases: tuple[str, ...], spelled: Sequence[tuple[int, bytes]], columns: NDArray[np.uint8]
) -> PhraseList:
    """Phrases as a trie; then every state gets the moves of the longest suffix that is a state, too."""
    goto = np.zeros((sum(len(form) for _, form in spelled) + 1, int(columns.max(initial=0)) + 1), np.int32)
    phrase_at, num_states = np.full(len(goto), -1, np.int32), 1
    lengths = np.zeros(len(goto), np.int32)  # by state: capitals may have other bytes than small letters
    for index, form in spelled:
        state = 0
        for byte in form:
            if goto[state, columns[byte]] == 0:
                goto[state, columns[byte]] = num_states
                num_states += 1
            state = int(goto[state, columns[byte]])
        phrase_at[state] = index
        lengths[state] = len(form)
    next_match = np.zeros(len(goto), np.int32)
    _link(goto, phrase_at, next_match)
    is_word = np.array([_is_word(phrase) for phrase in phrases], np.bool_)
    return PhraseList(
        phrases, columns, goto[:num_states].copy(), phrase_at[:num_states].copy(),
        next_match[:num_states].copy(), lengths[:num_states].copy(), is_word,
    )  # fmt: skip


def _link(goto: NDArray[np.int32], phrase_at: NDArray[np.int32], next_match: NDArray[np.int32]) -> None:
    """Breadth first, because a suffix is shorter than what it is the suffix of."""
    suffix = np.zeros(len(goto), np.int32)
    waiting = deque(int(child) for child in goto[0] if child)
    while waiting:
        state = waiting.popleft()
        shorter = int(suffix[state])
        next_match[state] = shorter if phrase_at[shorter] >= 0 else next_match[shorter]
        for column in range(1, goto.shape[1]):
            child = int(goto[state, column])
            if child:
                suffix[child] = goto[shorter, column]
                waiting.append(child)
            else:
                goto[state, column] = goto[shorter, column]


def _is_word(phrase: str) -> bool:
    def is_latin(character: str) -> bool:
        return character.isalnum() and character < "\u0250"

    return is_latin(phrase[0]) or is_latin(phrase[-1])
