"""Which documents tools can be asked for: those whose title stands for no other, as many as memory is for.

Titles are compared by hash over the whole corpus (8 bytes a document). Where documents are too many, those of
each source stay whose title's hash is smallest: a uniform sample that depends on nothing but the documents.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.corpus_prep.measuring.measures import text_buffers
from stages.corpus_prep.sampling import fair_shares
from stages.runtime.compiled import njit

MAX_ENTRIES = 60_000
MAX_ENTRIES_PER_SOURCE = 30_000
NO_TITLE = 0
# FNV-1a's, Fowler, Noll and Vo; the last mixing is MurmurHash3's (Appleby).
_BASIS, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_MIX_1, _MIX_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)


def title_hashes(titles: pa.Array) -> NDArray[np.uint64]:
    """uint64 [titles]: a hash of each; NO_TITLE for an empty one and for a null."""
    return _hashes(*text_buffers(titles.cast(pa.large_string())))


@njit(cache=True)
def _hashes(data, bounds):
    found = np.zeros(len(bounds) - 1, np.uint64)
    for text in range(len(found)):
        state = _BASIS
        for place in range(bounds[text], bounds[text + 1]):
            state = (state ^ np.uint64(data[place])) * _PRIME
        if bounds[text] < bounds[text + 1]:
            state = (state ^ (state >> np.uint64(33))) * _MIX_1
            state = (state ^ (state >> np.uint64(33))) * _MIX_2
            found[text] = max(state ^ (state >> np.uint64(33)), np.uint64(1))
    return found


def choose_entries(
    hashes: NDArray[np.uint64], kept: NDArray[np.bool_], sources: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """bool [documents]: of those that are kept, the ones to make entries of.

    hashes: uint64 [documents], `title_hashes`. sources: integers [documents], the number of each source.
    At most MAX_ENTRIES, shared out evenly, and MAX_ENTRIES_PER_SOURCE of each source.
    """
    titled = np.flatnonzero(kept & (hashes != NO_TITLE))
    titled = titled[np.argsort(hashes[titled], kind="stable")]
    same = hashes[titled][1:] == hashes[titled][:-1]
    alone = ~(np.append(same, False) | np.insert(same, 0, False))[: len(titled)]
    candidates = titled[alone]
    place, limits = _within_source(sources[candidates])
    chosen = np.zeros(len(hashes), bool)
    chosen[candidates[place < limits][:MAX_ENTRIES]] = True
    return chosen


def _within_source(sources: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(how many of its source come before it, how many of its source may stay) of each candidate."""
    names, number, counts = np.unique(sources, return_inverse=True, return_counts=True)
    order = np.argsort(number, kind="stable")
    place = np.empty(len(sources), np.int64)
    place[order] = np.arange(len(sources)) - np.repeat(np.cumsum(counts) - counts, counts)
    sizes = {str(name): min(int(n), MAX_ENTRIES_PER_SOURCE) for name, n in zip(names, counts, strict=True)}
    shares = fair_shares(sizes, MAX_ENTRIES)
    # Of more sources than entries each offers one, and the smallest hashes of all stay.
    limits = np.array([max(1, shares[str(name)]) for name in names], np.int64)
    return place, limits[number]
