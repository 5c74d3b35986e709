"""Everything that comes in, the harvest or the user's files, shared out to shards and read there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpus_prep.benchmark_forms import looks_like_benchmark
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.harvest import harvest
from stages.corpus_prep.harvest_files import harvested_packages
from stages.corpus_prep.held_records import Records
from stages.corpus_prep.preparation import (
    MEASURES_NAME,
    RECORDS_NAME,
    REJECTS_NAME,
    TEXTS_NAME,
    Preparation,
    Share,
    new_file_counts,
    prepare,
)
from stages.corpus_prep.reading.downloads import Downloads
from stages.corpus_prep.reading.pieces import Piece, pieces
from stages.corpus_prep.reading.readers import ReadNotes, read_rows
from stages.corpus_prep.reading.record_forms import recognise, unknown_form
from stages.corpus_prep.reading.sources import Listing, SourceFile, expand, survey
from stages.corpus_prep.sampling import Mixture
from stages.corpus_prep.screening.screen_documents import Screening
from stages.corpus_prep.screening.screen_records import record_text
from stages.corpus_prep.spec import CorpusPrepConfig
from stages.runtime.errors import UserError
from stages.runtime.session import StageSession
from stages.runtime.shard_map import Shard, ShardMap

OVERSAMPLE = 2.0
"""How much more than its share of the limit a source may read: filters and duplicates take their part."""
PACKED_FACTOR = 4
SHARD_BYTES = 64 << 20
"""Small files share a shard up to this size."""
HARVEST_SCHEMA = pa.schema(
    {"source": pa.string(), "title": pa.string(), "kind": pa.string(), "text": pa.large_string()}
)
HARVEST_ROWS = 1024


@dataclass
class Gathered:
    """Documents by shard, records by source, and what the readers noticed."""

    texts: list[Path]
    """`texts.parquet` of each shard, in order."""
    measures: list[Path]
    counts: list[int]
    records: Records
    repairs: Counter[str] = field(default_factory=Counter)
    masked: dict[str, Counter[str]] = field(default_factory=dict)
    """"documents" and "records" -> what was masked in them, by kind."""
    switches: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Source -> filters that its entry switches."""
    mixture: Mixture = field(default_factory=Mixture)
    without_rows: list[str] = field(default_factory=list)
    crowded_out: list[str] = field(default_factory=list)
    """Files of which the size limit let no document in."""


class Gatherer:
    """Reads all sources of a configuration."""

    def __init__(
        self,
        config: CorpusPrepConfig,
        shards: ShardMap,
        funnel: Funnel,
        session: StageSession,
        screening: Screening,
    ) -> None:
        self.config = config
        self.screening = screening
        self.warnings: set[str] = set()
        self._has_records_as_documents = False
        self.shards = shards
        self.funnel = funnel
        self.session = session
        self.result = Gathered([], [], [], Records(config.max_conversations, config.max_preferences))
        self.max_bytes = int(config.max_megabytes * 1e6)
        self.files: dict[str, dict[str, Any]] = {}

    def gather(self) -> Gathered:
        """Read everything. Raises UserError for files that are missing, broken or of unknown form."""
        if self.config.sources:
            downloads = Downloads(progress=self._show_download)
            expand("sources", self.config.sources, downloads)
            self._read_files(survey("sources", self.config.sources, downloads))
        else:
            self._prepare("prepare", self._harvested())
        if not any(self.result.counts):
            self.add_documents_of_records()
        return self.result

    def why_nothing(self, bad: Mapping[str, int]) -> str:
        """`dropped: too_short (quality) 3, bad_json (records) 1; nothing is in notes.jsonl`.

        bad: documents of low quality, by reason.
        """
        found = self.funnel.reasons + Counter({("quality", name): n for name, n in bad.items()})
        reasons = [f"{reason} ({step}) {n:,}" for (step, reason), n in found.most_common()]
        told = [f"dropped: {', '.join(reasons)}"] if reasons else []
        if self.result.without_rows:
            told.append(f"nothing is in {', '.join(self.result.without_rows)}")
        return "; ".join(told) or "the sources are empty"

    def _harvested(self) -> list[tuple[Share, int]]:
        packages = harvested_packages(self.config.packages)
        self.session.log(f"reading the documentation of {len(packages)} packages of this Python")
        documents = harvest(packages, self.max_bytes, lambda d, t: self.session.progress(d, t, "files"))
        rows = ({"source": d.package, "title": d.title, "kind": d.kind, "text": d.text} for d in documents)
        return [self._own_table("harvest", rows)]

    def _own_table(self, name: str, rows: Iterable[dict[str, Any]]) -> tuple[Share, int]:
        """Documents of our own making as a file that a shard can read."""
        path = self.session.work_dir / "tables" / f"{name}.parquet"
        waiting, size = iter(rows), 0
        with pq.ParquetWriter(path, HARVEST_SCHEMA, compression="zstd", compression_level=1) as writer:
            while group := list(islice(waiting, HARVEST_ROWS)):
                table = pa.Table.from_pylist(group, HARVEST_SCHEMA)
                size += table.nbytes
                writer.write_table(table)
        return Share(Piece(SourceFile(name, path, ".parquet", origin=name)), 1.0, is_ours=True), size

    def _read_files(self, listing: Listing) -> None:
        for reject in listing.refused:
            about = {"doc_id": "", "source": reject.path, "title": "", "num_bytes": 0}
            self.funnel.dropped("records", reject.reason, "", reject.detail, **about)
        files = [self._with_fields(file) for file in listing.files]
        self.result.switches = {file.name: file.filters for file in files if file.filters}
        self.result.mixture = _mixture(files)
        sizes = {file.name: max(1, _text_size(file)) for file in files}
        texts = {file.name: sizes[file.name] for file in files if self._holds_documents(file)}
        wanted = replace(self.result.mixture, caps=_oversampled(self.result.mixture.caps))
        shares = sizes | wanted.shares(texts, int(self.max_bytes * OVERSAMPLE))
        shared: list[tuple[Share, int]] = []
        for file in files:
            self.session.log(f"reading {file.name} ({sizes[file.name] / 1e6:.1f} MB)")
            fraction = min(1.0, shares[file.name] / sizes[file.name])
            cut = pieces(file, SHARD_BYTES)
            shared += [(Share(piece, fraction), sizes[file.name] // len(cut)) for piece in cut]
        self._prepare("prepare", shared)
        self._tell_of_files()

    def _with_fields(self, file: SourceFile) -> SourceFile:
        """The file with the stage's names of fields where its source has none of its own."""
        return replace(
            file,
            text_field=file.text_field or self.config.text_field,
            title_field=file.title_field or self.config.title_field,
        )

    def _show_download(self, done: int, total: int, url: str) -> None:
        self.session.progress(done // 1000, max(done, total) // 1000, "kB", file=url)

    def _holds_documents(self, file: SourceFile) -> bool:
        """Whether the first row is a document: only those compete for the size limit.

        Raises UserError where it is of no known form, or holds a benchmark question.
        """
        first = next(read_rows(file, ReadNotes(self.config.on_damage)), None)
        if first is None:
            return False
        if looks_like_benchmark(first) and not file.text_field:
            raise UserError(
                f"{file.name} holds benchmark questions ({', '.join(first)})",
                hint="give it as corpus_prep.benchmark_sources: training on it would spoil the scores",
            )
        form = recognise(first, file.text_field, file.title_field)
        if form is None:
            raise unknown_form(file.name, first, file.text_field)
        return form.kind == "document"

    def _prepare(self, step: str, shares: Sequence[tuple[Share, int]]) -> None:
        groups = list(_groups(shares))
        settings = {
            name: getattr(self.config, name) for name in ("on_damage", "max_conversations", "max_preferences")
        }
        screening = replace(self.screening, switches=tuple(sorted(self.result.switches.items())))
        tasks = [
            Preparation(tuple(share for share, _ in group), **settings, screening=screening)
            for group in groups
        ]
        weights = [sum(size for _, size in group) for group in groups]
        for shard in self.shards.run(step, prepare, tasks, weights):
            self._take(shard)

    def _take(self, shard: Shard) -> None:
        result = shard.result
        self.funnel.merge(result["funnel"], shard.folder / REJECTS_NAME)
        self.result.texts.append(shard.folder / TEXTS_NAME)
        self.result.measures.append(shard.folder / MEASURES_NAME)
        self.result.counts.append(result["num_documents"])
        self.result.records.read(shard.folder / RECORDS_NAME)
        self.result.repairs.update(result["repairs"])
        for where, counts in result["masked"].items():
            self.result.masked.setdefault(where, Counter()).update(counts)
        for warning in set(result["warnings"]) - self.warnings:
            self.warnings.add(warning)
            self.session.warn(warning)
        for name, about in result["files"].items():
            mine = self.files.setdefault(name, new_file_counts())
            for what in ("rows", "read", "sampled"):
                mine[what] += about[what]
            mine["rejects"].update(about["rejects"])
            mine["encodings"] |= about["encodings"]

    def _tell_of_files(self) -> None:
        for name, about in self.files.items():
            if about["encodings"]:
                self.session.log(f"{name}: read as {', '.join(sorted(about['encodings']))}")
            for reason, count in about["rejects"].items():
                self.session.warn(f"{name}: {reason}: {count:,} left out")
            if about["rows"] == 0:
                self.result.without_rows.append(name)
                self.session.warn(f"{name} holds no rows")
            if about["read"] and not about["sampled"]:
                self.result.crowded_out.append(name)

    def add_documents_of_records(self) -> None:
        """Without documents, what was said in conversations and pairs is what there is to learn from."""
        if self._has_records_as_documents:
            return
        self._has_records_as_documents = True
        rows = (
            {"source": source, "title": "", "kind": "text", "text": record_text(record)}
            for source, record in self.result.records
        )
        self._prepare("prepare_records", [self._own_table("records", rows)])


def _mixture(files: Sequence[SourceFile]) -> Mixture:
    """What the entries of the sources say."""
    entries = {str(file.entry): file for file in files}
    return Mixture(
        {file.name: str(file.entry) for file in files},
        {entry: file.weight for entry, file in entries.items()},
        {entry: int(file.max_megabytes * 1e6) for entry, file in entries.items() if file.max_megabytes},
    )


def _oversampled(caps: Mapping[str, int]) -> dict[str, int]:
    return {entry: int(cap * OVERSAMPLE) for entry, cap in caps.items()}


def _groups(shares: Iterable[tuple[Share, int]]) -> Iterator[list[tuple[Share, int]]]:
    """Neighbours together, up to the size of a shard."""
    group: list[tuple[Share, int]] = []
    held = 0
    for share, size in shares:
        if group and held + size > SHARD_BYTES:
            yield group
            group, held = [], 0
        group.append((share, size))
        held += size
    if group:
        yield group


def _text_size(file: SourceFile) -> int:
    """About how many bytes of text a file holds, without reading it."""
    if file.kind == ".parquet":
        return _parquet_size(file.path)
    size = file.path.stat().st_size
    return size * PACKED_FACTOR if file.is_compressed else size


def _parquet_size(path: Path) -> int:
    """Uncompressed bytes by the footer; 1 for a file that has none, which its reader then reports."""
    try:
        footer = pq.read_metadata(path)
    except (OSError, ValueError):
        return 1
    return sum(footer.row_group(index).total_byte_size for index in range(footer.num_row_groups))
