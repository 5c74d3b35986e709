"""Which rules judge which documents: the sets that the user chose, by source and language, thresholds moved.

Statistics are stored and decisions derived, so all of this is asked after every text has been measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.corpus_prep.measuring.edited_lines import judges_the_edited, with_left
from stages.corpus_prep.measuring.judging import failing, judge, rule_values
from stages.corpus_prep.measuring.rules import RULE_SETS, Rule, choose_rules, parse_threshold
from stages.corpus_prep.screening.screen_rules import ScreenLimits, what_was_hit
from stages.runtime.errors import UserError, did_you_mean

#: Name that users choose -> language -> rule sets; "" stands for all other languages.
PRESETS: dict[str, dict[str, tuple[str, ...]]] = {
    "documentation": {
        "": ("documentation",),
        "zh": ("documentation_zh",),
        "ja": ("documentation_zh",),
        "code": ("documentation_code",),
    },
    "web": {
        "": ("gopher_repetition", "gopher_quality", "c4_fineweb", "fineweb"),
        "zh": ("fineweb2_zh",),
    },
}
NO_FILTERS = "none"


@dataclass(frozen=True)
class Filters:
    """What the user chose. names: presets and rule sets; thresholds: RULE=NUMBER or RULE=off."""

    names: tuple[str, ...]
    thresholds: tuple[str, ...] = ()
    limits: ScreenLimits = field(default_factory=ScreenLimits)
    """Asked of every document, whatever its source switches."""

    def __post_init__(self) -> None:
        for name in self.names:
            _check(name)
        choose_rules((), self._moved)

    @cached_property
    def _moved(self) -> dict[str, float]:
        return dict(map(parse_threshold, self.thresholds))  # type: ignore[arg-type]

    def rules(self, language: str, switches: Sequence[str] = ()) -> tuple[Rule, ...]:
        """The rules for documents of a language. switches: of their source, `-NAME`, `+NAME` or `none`."""
        return choose_rules(self.sets(language, switches), self._moved) + self.limits.rules()

    def sets(self, language: str, switches: Sequence[str] = ()) -> tuple[str, ...]:
        """The names of the rule sets, each once."""
        names = list(self.names)
        for switch in switches:
            if switch == NO_FILTERS:
                names.clear()
                continue
            name = switch[1:]
            _check(name)
            names = [other for other in names if other != name] + ([name] if switch[0] == "+" else [])
        return tuple(dict.fromkeys(s for name in names for s in _sets(name, language)))


def _check(name: str) -> None:
    known = (*PRESETS, *RULE_SETS)
    if name not in known:
        raise UserError(
            f"there is no filter {name!r}{did_you_mean(name, known)}", hint=f"filters: {', '.join(known)}"
        )


def _sets(name: str, language: str) -> tuple[str, ...]:
    if name not in PRESETS:
        return (name,)
    return PRESETS[name].get(language, PRESETS[name][""])


def judge_documents(
    measures: pa.Table, filters: Filters, switches: Mapping[str, tuple[str, ...]]
) -> NDArray[np.uint64]:
    """uint64 [documents]: a bit for every reason to drop it. switches: source -> those of its entry."""
    masks = np.zeros(measures.num_rows, np.uint64)
    for language, own, members in groups_of(measures, switches):
        judged = measures if len(members) == len(masks) else measures.take(pa.array(members))
        masks[members] = _judge(judged, filters.rules(language, own))
    return masks


def _judge(measures: pa.Table, rules: Sequence[Rule]) -> NDArray[np.uint64]:
    """FineWeb's rules see what C4's line edits left of each document."""
    after = [rule for rule in rules if judges_the_edited(rule)]
    masks = judge(measures, [rule for rule in rules if rule not in after])
    return masks | judge(with_left(measures), after) if after else masks


def groups_of(
    measures: pa.Table, switches: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, tuple[str, ...], NDArray[np.int64]]]:
    """(language, switches, rows) of the documents that the same rules judge.

    By what a source switches and not by the source, of which a folder of small files has thousands.
    """
    languages, language = _encoded(measures.column("language"))
    kinds = list(dict.fromkeys([(), *switches.values()]))
    kind = np.zeros(measures.num_rows, np.int64)
    if switches:
        sources, source = _encoded(measures.column("source"))
        kind = np.array([kinds.index(switches.get(name, ())) for name in sources], np.int64)[source]
    group = language * len(kinds) + kind
    for number in np.unique(group).tolist():
        yield languages[number // len(kinds)], kinds[number % len(kinds)], np.flatnonzero(group == number)


def _encoded(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """(distinct values, which of them each row has)."""
    values = column.unique()
    return values.to_pylist(), pc.index_in(column, values).to_numpy().astype(np.int64)


def explain_documents(
    measures: pa.Table, filters: Filters, switches: Mapping[str, tuple[str, ...]]
) -> list[tuple[str, str]]:
    """(reason, detail) of each document: the first reason, and all with their values; "" where none drops it.

    Rule by rule over all documents: rule by rule over one document costs more than measuring it.
    """
    told: list[tuple[str, list[str]]] = [("", []) for _ in range(measures.num_rows)]
    for language, own, members in groups_of(measures, switches):
        came = measures.take(pa.array(members))
        left = with_left(came)
        for rule in filters.rules(language, own):
            judged = left if judges_the_edited(rule) else came
            broken = failing(judged, rule)
            values = rule_values(judged, rule) if broken.any() else np.empty(0)
            for place in np.flatnonzero(broken).tolist():
                first, details = told[members[place]]
                told[members[place]] = (first or rule.reason, details)
                hit = what_was_hit(judged.slice(place, 1), rule)
                details.append(f"{_short(rule)}{hit} {values[place]:.4g} {rule}")
    return [(first, "; ".join(details)) for first, details in told]


def _short(rule: Rule) -> str:
    return rule.reason.rpartition(".")[2]
