"""What comes from outside the store, for planning: sources, questions, and what earlier builds kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from stages.corpus_prep.reading.outside import outside_inputs as outside_sources
from stages.corpus_prep.reading.sources import InputConfig, file_digests, source_digests
from stages.corpus_prep.screening.screen_inputs import (
    LIST_SETTINGS,
    TEXT_SETTINGS,
    ScreenConfig,
    check_screens,
    list_files,
)
from stages.runtime.errors import UserError
from stages.runtime.spec import Outside


class CorpusInputs(InputConfig, ScreenConfig, Protocol):
    """The settings that say where the input comes from."""

    @property
    def earlier_corpora(self) -> Sequence[str]:
        """Folders of `dedup_index` parts."""

    @property
    def filters(self) -> Sequence[str]: ...
    @property
    def thresholds(self) -> Sequence[str]: ...


def external_inputs(config: CorpusInputs) -> dict[str, str]:
    """Name -> digest of everything from outside the store. Raises UserError for what is not there."""
    check_screens(config)
    if config.thresholds or set(config.filters) - {"documentation", "web"}:
        from stages.corpus_prep.filtering import Filters  # half a second, which most plans need not wait

        Filters(tuple(config.filters), tuple(config.thresholds))
    digests = source_digests(config) | _screen_digests(config)
    for number, folder in enumerate(earlier_folders(config.earlier_corpora)):
        joined = hashlib.sha256()
        for path in _files(folder):
            with path.open("rb") as file:
                joined.update(hashlib.file_digest(file, "sha256").digest())
        digests[f"earlier corpus {number:03d}"] = joined.hexdigest()
    return digests


def _screen_digests(config: CorpusInputs) -> dict[str, str]:
    """Of the lists, and of the texts that models learn from; by content, as sources count."""
    digests = {}
    for setting in LIST_SETTINGS:
        for number, path in enumerate(list_files(setting, getattr(config, setting))):
            with path.open("rb") as file:
                digests[f"{setting} {number:03d}"] = hashlib.file_digest(file, "sha256").hexdigest()
    for setting in TEXT_SETTINGS:
        if patterns := getattr(config, setting):
            named = file_digests(setting, patterns)
            digests |= {f"{setting} {name}": digest for name, digest in named.items()}
    return digests


def outside_inputs(config: CorpusInputs) -> Outside:
    """Where all of it is, for who has to bring it to where the stage runs."""
    found = outside_sources(config)
    lists = [path for setting in LIST_SETTINGS for path in list_files(setting, getattr(config, setting))]
    return replace(found, same_place=(*found.same_place, *lists, *earlier_folders(config.earlier_corpora)))


def earlier_folders(names: Sequence[str]) -> list[Path]:
    """The `dedup_index` parts that the user named: the part itself, or the artifact that has it.

    Raises UserError where there is none.
    """
    folders = []
    for name in names:
        named = Path(name).expanduser()
        found = next((folder for folder in (named / "dedup_index", named) if _files(folder)), None)
        if found is None:
            raise UserError(
                f"corpus_prep.earlier_corpora: {named} holds no dedup_index",
                hint="name an artifact of corpus_prep, such as STORE/artifacts/corpus_prep/FINGERPRINT",
            )
        folders.append(found)
    return folders


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))
