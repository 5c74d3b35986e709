"""Texts to judge tokenizers by: the Parquet files of a folder, and the documentation of this Python.

One document in twenty is held out whole, by hash of its text; a source that is a single text is cut into parts
first. Nothing is drawn at random: two runs see the same texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.corpus_prep.harvest import package_documents
from stages.corpus_prep.harvest_files import harvested_packages
from stages.tokenizer.sample import allocate

PART_CHARACTERS = 20_000
HELD_OUT = 20
PACKAGES = (
    "python",
    "numpy",
    "prefect",
    "pydantic",
    "pyarrow",
    "matplotlib",
    "sqlalchemy",
    "networkx",
    "torch",
)
CLASSICAL = ("poetry", "classical")
"""Sources, by a part of their name, in Classical Chinese: hardly any word is longer than a character."""


def load(folder: Path) -> dict[str, list[str]]:
    """Source -> texts, in parts. A source's name is its file's; those with a translation are two."""
    sources: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            for suffix, text in _texts(row):
                sources.setdefault(path.stem + suffix, []).append(text)
    for package in harvested_packages(PACKAGES):
        for document in package_documents(package):
            sources.setdefault("python_documentation", []).append(document.text)
    return {
        name: texts if len(texts) >= HELD_OUT else [part for text in texts for part in _parts(text)]
        for name, texts in sources.items()
    }


def _texts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "target" in row:  # a translation into modern Chinese beside the classical text
        yield "", row["source"]
        yield "_modern", row["target"]
    elif "paragraphs" in row:
        yield "", "\n".join([row["title"] or "", *(row["paragraphs"] or [])])
    elif row["text"]:
        yield "", row["text"]


def _parts(text: str) -> Iterator[str]:
    for start in range(0, len(text), PART_CHARACTERS):
        yield text[start : start + PART_CHARACTERS]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())


def split(sources: Mapping[str, list[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Texts to learn from, and texts to judge by, by source."""
    train = {name: [t for t in texts if _hash(t) % HELD_OUT] for name, texts in sources.items()}
    held = {name: [t for t in texts if _hash(t) % HELD_OUT == 0] for name, texts in sources.items()}
    return train, held


def num_bytes(texts: list[str]) -> int:
    """Bytes of UTF-8."""
    return sum(len(text.encode("utf-8", "replace")) for text in texts)


def draw(train: Mapping[str, list[str]], megabytes: float) -> list[str]:
    """A sample as the stage draws it: half of the budget equally for every source, half by size."""
    quotas = allocate({name: num_bytes(texts) for name, texts in train.items()}, int(megabytes * 1e6))
    chosen = []
    for name, texts in train.items():
        left = quotas[name]
        for text in sorted((part for whole in texts for part in _parts(whole)), key=_hash):
            if left <= 0:
                break
            chosen.append(text)
            left -= num_bytes([text])
    return chosen


def group(source: str, texts: list[str]) -> str:
    """English, modern Chinese or Classical Chinese."""
    if source.endswith("_modern"):
        return "Chinese"
    if any(name in source for name in CLASSICAL):
        return "Classical Chinese"
    sample = "".join(texts[:20])
    return "Chinese" if sum("\u4e00" <= c <= "\u9fff" for c in sample) > len(sample) / 10 else "English"
