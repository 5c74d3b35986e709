"""One entry of `sources`: what is read, and how it takes part in the mixture.

    notes/*.md;weight=2;licence=CC-BY-4.0          on the command line
    { path = "notes/*.md", weight = 2, licence = "CC-BY-4.0" }      in TOML

Both are the same entry; `as_text` makes the first of the second.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from stages.corpus_prep.reading.kinds import KINDS, SAME_AS
from stages.runtime.errors import UserError, did_you_mean

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")


@dataclass(frozen=True)
class SourceEntry:
    """A path, folder, glob or address with its options."""

    path: str
    weight: float = 1.0
    """Share of the mixture, relative to the other sources'."""
    max_megabytes: float = 0.0
    """Most text to take of it; 0 for no limit of its own."""
    language: str = ""
    """What the user says that its language is; "" lets every document be told by itself."""
    licence: str = ""
    """Licence of rows that name none."""
    filters: tuple[str, ...] = ()
    """Filters to switch for this source: "-NAME" off, "+NAME" on, "none" for all off."""
    kind: str = ""
    """Read files as this kind whatever their name, such as ".txt" for logs."""
    text_field: str = ""
    """Name of the field that holds the text, other than the stage's `text_field` and the known ones."""
    title_field: str = ""
    """The same for the title."""

    @property
    def options(self) -> str:
        """The options that are not as they are by default: `weight=2;licence=CC-BY-4.0`."""
        given = [(f.name, getattr(self, f.name), f.default) for f in fields(self)[1:]]
        return ";".join(f"{name}={_written(value)}" for name, value, default in given if value != default)

    @property
    def is_remote(self) -> bool:
        """Whether the path is an address."""
        return is_address(self.path)


def is_address(path: str) -> bool:
    """Whether it has the form `scheme://...`."""
    return _SCHEME.match(path) is not None


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse_entry(setting: str, entry: str | Mapping[str, Any]) -> SourceEntry:
    """Raises UserError for an unknown option, with the nearest known one, and for a value without sense.

    A file that exists under the whole text, semicolons and all, is that file.
    """
    if isinstance(entry, Mapping):
        given = {str(name): value for name, value in entry.items()}
        path = str(given.pop("path", ""))
    elif ";" not in entry or Path(entry).expanduser().exists():
        return SourceEntry(entry)
    else:
        path, *parts = entry.split(";")
        given = dict(_name_and_value(setting, entry, part) for part in parts if part.strip())
    if not path.strip():
        raise UserError(
            f"corpus_prep.{setting}: {entry!r} names no path", hint=f"write PATH;{_example()} or path = ..."
        )
    values = [_parsed(setting, path, name, value) for name, value in given.items()]
    return replace(SourceEntry(path.strip()), **dict(values))


def _example() -> str:
    return "weight=2;licence=CC-BY-4.0"


def _name_and_value(setting: str, entry: str, part: str) -> tuple[str, str]:
    name, sign, value = part.partition("=")
    if not sign:
        raise UserError(
            f"corpus_prep.{setting}: in {entry!r}, {part!r} is no option",
            hint=f"options are written PATH;{_example()}",
        )
    return name.strip(), value.strip()


def _number(value: Any) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError("expected a number above 0")
    return number


def _filters(value: Any) -> tuple[str, ...]:
    names = tuple(str(n).strip() for n in (value.split(",") if isinstance(value, str) else value))
    for name in names:
        if name != "none" and not re.fullmatch(r"[+-]\w+", name):
            raise ValueError(f"{name!r}: expected -NAME, +NAME or none, separated by commas")
    return names


def _kind(value: Any) -> str:
    kind = "." + str(value).lower().removeprefix(".")
    kind = SAME_AS.get(kind, kind)
    if kind not in KINDS:
        raise ValueError(f"{value!r}{did_you_mean(kind, KINDS)}: expected one of {' '.join(KINDS)}")
    return kind


_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "weight": _number,
    "max_megabytes": _number,
    "language": str,
    "licence": str,
    "filters": _filters,
    "kind": _kind,
    "text_field": str,
    "title_field": str,
}
_ALSO = {"license": "licence", "lang": "language"}


def _parsed(setting: str, path: str, name: str, value: Any) -> tuple[str, Any]:
    name = _ALSO.get(name, name)
    if name not in _OPTIONS:
        raise UserError(
            f"corpus_prep.{setting}: {path} has an unknown option {name!r}{did_you_mean(name, _OPTIONS)}",
            hint=f"options: {', '.join(_OPTIONS)}",
        )
    try:
        return name, _OPTIONS[name](value)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"corpus_prep.{setting}: {path}: {name} = {value!r}: {error}", hint=f"such as PATH;{_example()}"
        ) from None


def as_text(setting: str, entry: str | Mapping[str, Any]) -> str:
    """The entry as it is written on the command line; a string stays as it is."""
    if isinstance(entry, str):
        return entry
    parsed = parse_entry(setting, entry)
    return ";".join(filter(None, (parsed.path, parsed.options)))


def at_full_path(entry: str, base: Path) -> str:
    """The entry with a path that is relative to `base` made absolute; addresses stay."""
    if is_address(entry):
        return entry
    return str((base / Path(entry).expanduser()).absolute())
