"""C4's line edits on a batch that was measured: FineWeb judges what they leave, and that is kept.

datatrove's order is Gopher, C4, FineWeb, each on the text that the one before it left. So Gopher's and C4's
rules ask the statistics of the text as it came, and FineWeb's those of the edited text: the few columns that
they ask for are stored a second time, as `left_NAME`, for documents that were edited and for no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.corpus_prep.measuring.line_edits import edit_c4_lines
from stages.corpus_prep.measuring.measures import measure
from stages.corpus_prep.measuring.rules import RULE_SETS, Rule

#: Set of rules -> how its columns begin; `c4` also asks for terminal punctuation.
C4_SETS = {"c4": "c4_terminal_", "c4_fineweb": "c4_"}
_AFTER_THE_EDIT = "fineweb"
#: "characters_without_newlines" is made of two columns.
LEFT_COLUMNS = tuple(
    sorted(
        {name for rule in RULE_SETS[_AFTER_THE_EDIT] for name in (rule.measure, rule.per) if name}
        - {"characters_without_newlines"}
        | {"characters", "newlines"}
    )
)
LEFT_SCHEMA = pa.schema({f"left_{name}": pa.int32() for name in LEFT_COLUMNS})
"""Statistics of the text that the edit left; null where nothing was edited."""


@dataclass(frozen=True)
class Edited:
    """A batch after the edit. statistics: as before, with hash and signature of the edited texts."""

    texts: pa.LargeStringArray
    statistics: pa.RecordBatch
    left: pa.RecordBatch
    """LEFT_SCHEMA."""
    changed: NDArray[np.bool_]


def edit_measured(
    texts: pa.LargeStringArray, statistics: pa.RecordBatch, asked: Mapping[str, NDArray[np.bool_]]
) -> Edited:
    """Edit lines. asked: set of C4_SETS -> bool [texts], which documents it judges.

    A document stays as it came where C4 drops it at sight (lorem ipsum, a curly bracket), or would leave
    nothing of it: whoever switches that rule off wants the text, and whoever looks at the reject, too. Only
    documents that the edit changed are measured again.
    """
    edited = texts
    for name, prefix in C4_SETS.items():
        dropped = _positive(statistics, f"{prefix}lorem_lines") | _positive(
            statistics, f"{prefix}curly_lines"
        )
        if name in asked and (where := asked[name] & ~dropped).any():
            chosen = edited.filter(pa.array(where))
            left, _ = edit_c4_lines(chosen, terminal_punctuation=name == "c4")
            left = pc.if_else(pc.equal(pc.binary_length(left), 0), chosen, left)
            edited = _placed(edited, where, left)
    if edited is texts:
        return Edited(texts, statistics, _nothing_left(len(texts)), np.zeros(len(texts), np.bool_))
    changed = pc.not_equal(edited, texts).to_numpy(zero_copy_only=False)
    again = measure(edited.filter(pa.array(changed)))
    for name in ("text_hash", "signature"):
        column = _placed(statistics.column(name), changed, again.column(name))
        statistics = statistics.set_column(statistics.schema.get_field_index(name), name, column)
    nothing = _nothing_left(len(texts))
    columns = [_placed(nothing.column(f"left_{n}"), changed, again.column(n)) for n in LEFT_COLUMNS]
    return Edited(edited, statistics, pa.record_batch(columns, schema=LEFT_SCHEMA), changed)


def _positive(statistics: pa.RecordBatch, name: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = statistics.column(name).to_numpy() > 0
    return found


def _placed(column: pa.Array, where: NDArray[np.bool_], new: pa.Array) -> pa.Array:
    """`column` with the k-th of the places that `where` marks taken from `new[k]`."""
    order = np.arange(len(column))
    order[where] = len(column) + np.arange(len(new))
    return pa.concat_arrays([column, new]).take(pa.array(order))


def _nothing_left(length: int) -> pa.RecordBatch:
    columns = [pa.nulls(length, pa.int32()) for _ in LEFT_COLUMNS]
    return pa.record_batch(columns, schema=LEFT_SCHEMA)


def judges_the_edited(rule: Rule) -> bool:
    """Whether the rule stands behind the edit in datatrove's order."""
    return rule.name.startswith(f"{_AFTER_THE_EDIT}.")


def with_left(measures: pa.Table) -> pa.Table:
    """Measures in which the columns that FineWeb's rules ask for are those of the edited texts."""
    for name in LEFT_COLUMNS:
        left = f"left_{name}"
        if left in measures.schema.names and measures[left].null_count < measures.num_rows:
            column = pc.coalesce(measures[left], measures[name])
            measures = measures.set_column(measures.schema.get_field_index(name), name, column)
    return measures
