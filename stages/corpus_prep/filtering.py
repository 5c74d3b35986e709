"""Which rules judge which documents: the sets that the user chose, by source and language, thresholds moved.

Statistics are stored and decisions derived, so all of this is asked after every text has been measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
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
    measures: pa.Table, filters: Filters, switches: dict[str, tuple[str, ...]]
) -> NDArray[np.uint64]:
    """uint64 [documents]: a bit for every reason to drop it. switches: source -> those of its entry."""
    masks = np.zeros(measures.num_rows, np.uint64)
    pairs = measures.select(["source", "language"]).group_by(["source", "language"]).aggregate([])
    sources, languages = measures.column("source"), measures.column("language")
    for pair in pairs.to_pylist():
        members = np.flatnonzero(_equals(sources, pair["source"]) & _equals(languages, pair["language"]))
        rules = filters.rules(pair["language"], switches.get(pair["source"], ()))
        masks[members] = _judge(measures.take(pa.array(members)), rules)
    return masks


def _judge(measures: pa.Table, rules: Sequence[Rule]) -> NDArray[np.uint64]:
    """FineWeb's rules see what C4's line edits left of each document."""
    after = [rule for rule in rules if judges_the_edited(rule)]
    masks = judge(measures, [rule for rule in rules if rule not in after])
    return masks | judge(with_left(measures), after) if after else masks


def _equals(column: pa.ChunkedArray, value: str) -> NDArray[np.bool_]:
    import pyarrow.compute as pc

    return pc.equal(column, value).to_numpy()


def explain(measures: pa.Table, rules: Sequence[Rule]) -> tuple[str, str]:
    """(reason, detail) of one document that the rules drop: the first reason, and all with their values."""
    left = with_left(measures)
    asked = [(rule, left if judges_the_edited(rule) else measures) for rule in rules]
    broken = [(rule, of) for rule, of in asked if failing(of, rule)[0]]
    told = [
        f"{_short(rule)}{what_was_hit(of, rule)} {rule_values(of, rule)[0]:.4g} {rule}" for rule, of in broken
    ]
    return broken[0][0].reason, "; ".join(told)


def _short(rule: Rule) -> str:
    return rule.reason.rpartition(".")[2]
