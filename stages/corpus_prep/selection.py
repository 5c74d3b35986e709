"""Which rows of the scratch file stay: exact duplicates and the size limit, decided in DuckDB.

DuckDB sees only the skinny columns. It is told how much memory it may use, and spills to the work folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
from numpy.typing import NDArray

from stages.corpus_prep.sampling import fair_shares

MEMORY_LIMIT = "256MB"

KEPT, DUPLICATE, OVER_LIMIT = 0, 1, 2


@dataclass(frozen=True)
class Selection:
    """One verdict per scratch row (uint8 [rows]): KEPT, DUPLICATE or OVER_LIMIT."""

    verdicts: NDArray[np.uint8]

    def of(self, position: int) -> int:
        """Verdict on the row at `position`."""
        return int(self.verdicts[position])


def select(
    scratch: Path, num_rows: int, max_bytes: int, work_dir: Path, weights: Mapping[str, float] | None = None
) -> Selection:
    """Keep the first document of each id, and of each source at most its fair share of `max_bytes`.

    Where a source is too large, the documents with the smallest ids stay: ids are hashes, so that is a
    uniform sample which depends on nothing but the documents.
    """
    verdicts = np.zeros(num_rows, np.uint8)
    with _connect(work_dir) as database:
        database.execute(
            "create table skinny as select position, doc_id, source, num_bytes from read_parquet(?)",
            [str(scratch)],
        )
        repeated = database.execute(_DUPLICATES).fetchnumpy()["position"]
        verdicts[repeated] = DUPLICATE
        database.execute("delete from skinny where position in (select position from duplicates)")
        sizes = dict(
            database.execute("select source, sum(num_bytes)::bigint from skinny group by source").fetchall()
        )
        shares = fair_shares(dict(sorted(sizes.items())), max_bytes, weights)
        for source, share in shares.items():
            if share < sizes[source]:
                over = database.execute(_OVER_SHARE, [source, share]).fetchnumpy()["position"]
                verdicts[over] = OVER_LIMIT
    return Selection(verdicts)


_DUPLICATES = """
create temp table duplicates as
select skinny.position
from skinny
join (select doc_id, min(position) as first from skinny group by doc_id having count(*) > 1) as groups
  on skinny.doc_id = groups.doc_id and skinny.position <> groups.first;
select position from duplicates order by position
"""

_OVER_SHARE = """
select position from (
    select position, sum(num_bytes) over (order by doc_id rows unbounded preceding) as used
    from skinny where source = ?
) where used > ? order by position
"""


def _connect(work_dir: Path) -> duckdb.DuckDBPyConnection:
    spill = work_dir / "duckdb_spill"
    spill.mkdir(parents=True, exist_ok=True)
    return duckdb.connect(
        config={
            "memory_limit": MEMORY_LIMIT,
            "threads": 1,
            "temp_directory": str(spill),
            "preserve_insertion_order": "false",
        }
    )
