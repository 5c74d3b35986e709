"""The tool `lookup`: documents by their titles, which for a harvested corpus are the names of its symbols."""

from __future__ import annotations

import difflib
from functools import lru_cache
from pathlib import Path

import pyarrow.parquet as pq

from data_contracts.tables import part_files
from stages.whitebox.tool_results import lookup_result

MAX_SUGGESTIONS = 2
SIMILAR_ENOUGH = 0.6


class SymbolIndex:
    """Titles in memory, texts on disk: a text is read when its title is asked for.

    folder: a documents part; ValueError where it is none. Where several documents carry one title, the first
    in the part's order is meant.
    """

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, tuple[Path, int, int]] = {}
        files = part_files(folder)
        if not files:
            raise ValueError(
                f"{folder} holds no documents: expected part-*.parquet, as corpus_prep writes them"
            )
        for path in files:
            self._add_titles(path)
        self._by_last_name: dict[str, list[str]] = {}
        for title in self._places:
            self._by_last_name.setdefault(_last_name(title), []).append(title)
        self._texts = lru_cache(maxsize=8)(_read_texts)

    def __len__(self) -> int:
        return len(self._places)

    def answer(self, symbol: str) -> str:
        """What the tool says: the document's signature and first sentence, or which titles come close.

        A title is found exactly, or by its end if only one title ends so (`dedent`: `textwrap.dedent`).
        """
        title = self.resolve(symbol)
        if title is not None:
            path, group, row = self._places[title]
            return lookup_result(title, self._texts(path, group)[row])
        close = self.suggest(symbol)
        return f"{symbol} not found{'; did you mean ' + ' or '.join(close) + '?' if close else ''}"

    def resolve(self, symbol: str) -> str | None:
        """The title that `symbol` means, or None where there is none or more than one."""
        if symbol in self._places:
            return symbol
        ending = [title for title in self._same_last_name(symbol) if title.endswith("." + symbol)]
        return ending[0] if len(ending) == 1 else None

    def suggest(self, symbol: str) -> list[str]:
        """A few titles close to `symbol`: with the same last name first, then with a similar one."""
        namesakes = self._same_last_name(symbol)
        if not namesakes:
            similar = difflib.get_close_matches(
                _last_name(symbol), self._by_last_name, n=MAX_SUGGESTIONS, cutoff=SIMILAR_ENOUGH
            )
            namesakes = [title for name in similar for title in self._by_last_name[name]]
        # Ties go by title, so that the same corpus in another order suggests the same.
        ranked = sorted(namesakes, key=lambda title: (-_similarity(symbol, title), title))
        return ranked[:MAX_SUGGESTIONS]

    def _same_last_name(self, symbol: str) -> list[str]:
        return self._by_last_name.get(_last_name(symbol), [])

    def _add_titles(self, path: Path) -> None:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                titles = file.read_row_group(group, columns=["title"]).column(0).to_pylist()
                for row, title in enumerate(titles):
                    if title:
                        self._places.setdefault(title, (path, group, row))


def _last_name(title: str) -> str:
    return title.rpartition(".")[2]


def _similarity(symbol: str, title: str) -> float:
    return difflib.SequenceMatcher(None, symbol, title).ratio()


def _read_texts(path: Path, group: int) -> list[str]:
    with pq.ParquetFile(path) as file:
        texts: list[str] = file.read_row_group(group, columns=["text"]).column(0).to_pylist()
    return texts
