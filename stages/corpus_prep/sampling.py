"""Choosing by hash: the same rows are chosen whatever their order, and one more row moves no other.

`fair_shares` divides a limit among sources, `Smallest` keeps the k records with the smallest ids (bottom-k
sampling: uniform, because ids are hashes), `in_fraction` decides on one id alone.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
ID_DIGITS = 24


def hashed_id(*parts: str) -> str:
    """24 hex digits (96 bits) of the sha256 of the parts."""
    return hashlib.sha256("\x00".join(parts).encode("utf-8", "replace")).hexdigest()[:ID_DIGITS]


def in_fraction(key: str, salt: str, fraction: float) -> bool:
    """Whether `key` falls into the given fraction of all keys; independent for different salts."""
    bucket = int.from_bytes(hashlib.sha256(f"{salt}\x00{key}".encode("utf-8", "replace")).digest()[:7])
    return bucket < fraction * 2**56


def split_of(key: str, validation_fraction: float) -> str:
    """`validation` or `train`, by hash of the id alone."""
    return "validation" if in_fraction(key, "split", validation_fraction) else "train"


def fair_shares(
    sizes: Mapping[str, int], limit: int, weights: Mapping[str, float] | None = None
) -> dict[str, int]:
    """How much of `limit` each source gets: what a small one does not need goes to the others.

    weights: relative size of the shares, 1 where a source is not named. The sum is at most `limit`.
    """
    weights = weights or {}
    shares: dict[str, int] = {}
    waiting, left = dict(sizes), limit
    while waiting:
        per_weight = left / sum(weights.get(name, 1.0) for name in waiting)
        content = [name for name, size in waiting.items() if size <= per_weight * weights.get(name, 1.0)]
        if not content:
            return shares | {name: int(per_weight * weights.get(name, 1.0)) for name in waiting}
        for name in content:
            shares[name] = waiting.pop(name)
            left -= shares[name]
    return shares


@dataclass(frozen=True)
class Mixture:
    """How sources take part: each belongs to an entry that the user named, or is one of its own.

    entry_of: source -> entry. weights: entry -> its share, relative to the others; 1 where it is not named.
    caps: entry -> most bytes of all its sources together.
    """

    entry_of: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    caps: Mapping[str, int] = field(default_factory=dict)

    def shares(self, sizes: Mapping[str, int], limit: int) -> dict[str, int]:
        """How much of `limit` each source gets: shared out among entries first, then inside each."""
        members: dict[str, dict[str, int]] = {}
        for source, size in sizes.items():
            members.setdefault(self.entry_of.get(source, f"source {source}"), {})[source] = size
        totals = {entry: sum(own.values()) for entry, own in members.items()}
        capped = {entry: min(total, self.caps.get(entry, total)) for entry, total in totals.items()}
        by_entry = fair_shares(capped, limit, self.weights)
        return {s: n for entry, own in members.items() for s, n in fair_shares(own, by_entry[entry]).items()}


class Smallest(Generic[T]):
    """The `limit` records with the smallest ids of those that were added; an id counts once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.num_added = 0
        self.num_duplicates = 0
        self._held: dict[str, T] = {}
        self._largest: list[tuple[int, str]] = []

    def add(self, key: str, record: T) -> None:
        """Offer one record."""
        self.num_added += 1
        if key in self._held:
            self.num_duplicates += 1
            return
        rank = -int(key, 16)
        if len(self._held) >= self.limit:
            if not self._largest or rank <= self._largest[0][0]:
                return
            del self._held[heapq.heappop(self._largest)[1]]
        self._held[key] = record
        heapq.heappush(self._largest, (rank, key))

    def wants(self, key: str) -> bool:
        """Whether `add` would keep a record of this id: it need not be made otherwise."""
        full = len(self._held) >= self.limit
        return key not in self._held and (
            not full or (bool(self._largest) and -int(key, 16) > self._largest[0][0])
        )

    def get(self, key: str) -> T | None:
        """The record that is held under an id, if there is one."""
        return self._held.get(key)

    def __len__(self) -> int:
        return len(self._held)

    def items(self) -> Iterator[tuple[str, T]]:
        """(id, record) in the order of ids."""
        for key in sorted(self._held):
            yield key, self._held[key]


def balanced(samples: Mapping[str, Smallest[T]], limit: int) -> Iterator[tuple[str, str, T]]:
    """(source, id, record) of at most `limit` records, shared out among the sources; each id once."""
    shares = fair_shares({source: len(sample) for source, sample in samples.items()}, limit)
    seen: set[str] = set()
    for source, sample in samples.items():
        for count, (key, record) in enumerate(sample.items()):
            if count >= shares[source]:
                break
            if key not in seen:
                seen.add(key)
                yield source, key, record
