"""Which lists and texts of the user's own screening needs: light enough for planning a build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from stages.runtime.errors import UserError

LIST_SETTINGS = ("url_lists", "word_lists")
TEXT_SETTINGS = ("good_text", "bad_text")


class ScreenConfig(Protocol):
    """The settings that name lists and texts."""

    @property
    def url_lists(self) -> Sequence[str]: ...
    @property
    def word_lists(self) -> Sequence[str]: ...
    @property
    def good_text(self) -> Sequence[str]: ...
    @property
    def bad_text(self) -> Sequence[str]: ...
    @property
    def max_listed_phrases(self) -> int: ...
    @property
    def max_perplexity(self) -> float | None: ...
    @property
    def min_quality(self) -> float | None: ...
    @property
    def text_field(self) -> str: ...


def check_screens(config: ScreenConfig) -> None:
    """Raises UserError for a threshold without what it is about."""
    needs = (
        ("max_listed_phrases", config.max_listed_phrases > 0, ("word_lists",)),
        ("max_perplexity", config.max_perplexity is not None, ("good_text",)),
        ("min_quality", config.min_quality is not None, ("good_text", "bad_text")),
        ("bad_text", bool(config.bad_text), ("good_text",)),
    )
    for setting, is_set, others in needs:
        for other in others:
            if is_set and not getattr(config, other):
                raise UserError(
                    f"corpus_prep.{setting} is set, and corpus_prep.{other} names no file",
                    hint=f"--set 'corpus_prep.{other}=[\"FILE\"]', or leave {setting} out",
                )


def list_files(setting: str, names: Sequence[str]) -> list[Path]:
    """The files of `url_lists` or `word_lists`. Raises UserError for one that is not there."""
    found = [Path(name).expanduser() for name in names]
    for path in found:
        if not path.is_file():
            raise UserError(
                f"corpus_prep.{setting}: there is no file {path}",
                hint=f"give a text file with one entry a line; relative paths start from {Path.cwd()}",
            )
    return found
