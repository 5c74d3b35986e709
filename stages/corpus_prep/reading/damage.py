"""What could not be read: every file and row that is left out has a reason, and none is lost silently.

A reader raises `DamagedFile`. The setting decides what becomes of it: `stop` makes it the user's error,
`skip` makes it a `Reject` and reading goes on with the next file. Rows that came before the damage stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from stages.runtime.errors import UserError

OnDamage = Literal["stop", "skip"]
EXCERPT_CHARACTERS = 120

#: Every reason that a file is refused for, with what it means.
FILE_REASONS = {
    "unknown_kind": "nothing here reads files of this kind",
    "wrong_suffix": "the first bytes say that it is another kind of file than its name says",
    "not_a_file": "a folder, pipe, socket, device or a link that leads nowhere",
    "no_permission": "it may not be read",
    "empty": "it has no bytes",
    "broken": "its bytes break the rules of its format",
    "cut_short": "it ends before its format says",
    "password": "it is encrypted",
    "image_only": "pages without a text layer",
    "no_text": "it was read, and there is no text in it",
    "bomb": "it unpacks to far more than its size",
    "too_large": "it must be read as a whole and is over the limit for that",
    "no_records": "no row of it is a record",
    "missing_package": "the package that reads this kind is not installed",
}
#: The same for single rows.
ROW_REASONS = {
    "bad_json": "the line is no JSON object",
    "line_too_long": "the line is over the limit",
    "bad_csv": "the row breaks the rules of CSV",
    "bad_page": "the page of a PDF cannot be read",
    "no_question_row": "the row of a benchmark file holds no question with its choices and its answer",
}


class DamagedFile(Exception):
    """A file that cannot be read, or not to its end. reason: one of `FILE_REASONS`."""

    def __init__(self, reason: str, detail: str, hint: str) -> None:
        assert reason in FILE_REASONS, reason
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.hint = hint


@dataclass(frozen=True)
class Reject:
    """A file or row that was left out. Rows have an excerpt, a line number in their piece, and an offset."""

    path: str
    reason: str
    detail: str
    excerpt: str = ""
    line: int = 0
    begin: int = -1


@dataclass
class ReadNotes:
    """What reading noticed: encodings other than UTF-8, and what had to be left out.

    on_reject: is given every reject as it happens; without it they are held in `rejects`.
    """

    on_damage: OnDamage = "stop"
    on_reject: Callable[[Reject], None] | None = None
    encodings: dict[str, int] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def count(self, encoding: str) -> None:
        """Count one piece of text that was in `encoding`."""
        if encoding != "utf-8":
            self.encodings[encoding] = self.encodings.get(encoding, 0) + 1

    def reject(self, reject: Reject) -> None:
        """Note that something was left out."""
        self.reasons[reject.reason] += 1
        if self.on_reject is None:
            self.rejects.append(reject)
        else:
            self.on_reject(reject)

    @property
    def bad_lines(self) -> list[tuple[int, str]]:
        """(line number, its beginning) of the rows among the held rejects."""
        return [(r.line, r.excerpt) for r in self.rejects if r.line]

    @contextmanager
    def damage_of(self, path: str, named: str) -> Iterator[None]:
        """Treat a `DamagedFile` raised inside as `on_damage` says.

        path: for the reject, the same on every machine; named: for the message, where the file lies.
        Raises UserError if it says `stop`.
        """
        try:
            yield
        except DamagedFile as damage:
            if self.on_damage == "stop":
                hint = f"{damage.hint}; or go on without it: --set corpus_prep.on_damage=skip"
                raise UserError(f"{named} {damage.detail}", hint=hint) from None
            self.reject(Reject(path, damage.reason, damage.detail))
