"""What a contract is, and how a folder is checked against it.

A *part* is one folder inside an artifact, and every part is written under exactly one contract. A contract
lists the files that must be there and what each must hold; `check` returns every violation that it finds,
so that an error can name them all at once instead of one per run.

Checks read footers and headers, and the few columns that carry invariants: they cost milliseconds, not a
pass over the data. Whether bytes are intact is a different question; the manifest's sha256 answers that.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Violation:
    """One broken promise: the file (relative to the part) and what is wrong with it."""

    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


@dataclass(frozen=True)
class FileRule:
    """Files matching `pattern` inside the part; at least `minimum` of them must exist."""

    pattern: str
    minimum: int = 1

    def check(self, folder: Path) -> Iterator[Violation]:
        """Yield violations of this rule in `folder`."""
        found = sorted(folder.glob(self.pattern))
        if len(found) < self.minimum:
            have = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            yield Violation(
                self.pattern, f"expected at least {self.minimum} such file(s), the folder holds {have}"
            )
        for path in found:
            yield from (Violation(path.name, message) for message in self.problems(path))

    def problems(self, path: Path) -> Iterator[str]:
        """Yield what is wrong inside one file. An opaque file can only be empty."""
        if path.stat().st_size == 0:
            yield "is empty (0 bytes)"

    def describe(self) -> dict[str, Any]:
        """The frozen form of this rule, for the schema snapshots."""
        return {"pattern": self.pattern, "minimum": self.minimum, "kind": type(self).__name__}


@dataclass(frozen=True)
class TableRule(FileRule):
    """Parquet files with exactly this schema (names, types and order)."""

    pattern: str = "part-*.parquet"
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    unique: str | None = None
    allowed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def problems(self, path: Path) -> Iterator[str]:
        """Compare the footer's schema, then the columns that carry invariants."""
        try:
            found = pq.read_schema(path)
        except (pa.ArrowInvalid, OSError) as error:
            yield f"is no readable Parquet file ({error})"
            return
        differences = list(schema_differences(found, self.schema))
        yield from differences
        if not differences:
            yield from self._invariants(path)

    def _invariants(self, path: Path) -> Iterator[str]:
        for column, values in self.allowed.items():
            present = pc.unique(_read_column(path, column)).to_pylist()
            if unknown := sorted(str(v) for v in present if v not in values):
                yield f"column {column!r} holds {unknown[:5]}, allowed are {list(values)}"
        if self.unique:
            keys = _read_column(path, self.unique)
            if (distinct := pc.count_distinct(keys).as_py()) != len(keys):
                yield f"column {self.unique!r} must be unique: {len(keys)} rows, {distinct} distinct values"

    def describe(self) -> dict[str, Any]:
        """The frozen form: pattern plus every column with its type."""
        columns = [[name, str(kind)] for name, kind in zip(self.schema.names, self.schema.types, strict=True)]
        allowed = {name: list(values) for name, values in self.allowed.items()}
        return super().describe() | {"columns": columns, "unique": self.unique, "allowed": allowed}


@dataclass(frozen=True)
class TensorRule(FileRule):
    """A safetensors file; `tensors` maps names that must exist to their allowed dtypes ("" = any)."""

    tensors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    metadata: tuple[str, ...] = ()

    def problems(self, path: Path) -> Iterator[str]:
        """Check the header against the file's length, then names, dtypes and metadata keys."""
        try:
            header = safetensors_header(path)
        except ValueError as error:
            yield str(error)
            return
        for name, dtypes in self.tensors.items():
            if name not in header:
                present = sorted(key for key in header if key != "__metadata__")
                yield f"tensor {name!r} is missing; the file holds {present[:6]}"
            elif dtypes and header[name]["dtype"] not in dtypes:
                yield f"tensor {name!r} is {header[name]['dtype']}, expected {' or '.join(dtypes)}"
        carried = header.get("__metadata__", {})
        for key in self.metadata:
            if key not in carried:
                yield f"metadata key {key!r} is missing"

    def describe(self) -> dict[str, Any]:
        """The frozen form: pattern, tensor names with dtypes, metadata keys."""
        tensors = {name: list(dtypes) for name, dtypes in self.tensors.items()}
        return super().describe() | {"tensors": tensors, "metadata": list(self.metadata)}


@dataclass(frozen=True)
class JsonRule(FileRule):
    """A JSON object with at least these keys."""

    keys: tuple[str, ...] = ()

    def problems(self, path: Path) -> Iterator[str]:
        """Parse the file and look for the required keys."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            yield f"is no readable JSON ({error})"
            return
        missing = [key for key in self.keys if key not in document]
        if missing:
            yield f"keys {missing} are missing"

    def describe(self) -> dict[str, Any]:
        """The frozen form: pattern and keys."""
        return super().describe() | {"keys": list(self.keys)}


@dataclass(frozen=True)
class Contract:
    """A named, versioned promise about the content of one part."""

    name: str
    version: int
    summary: str
    rules: tuple[FileRule, ...]

    @property
    def identity(self) -> str:
        """`documents@1`, as manifests and error messages write it."""
        return f"{self.name}@{self.version}"

    @property
    def schema(self) -> pa.Schema:
        """Schema of the part's `part-*.parquet` files. Raises LookupError for parts without a table."""
        for rule in self.rules:
            if isinstance(rule, TableRule) and rule.pattern == "part-*.parquet":
                return rule.schema
        raise LookupError(f"{self.identity} has no part-*.parquet table")

    def check(self, folder: Path) -> list[Violation]:
        """All violations in `folder`; an empty list means that the part keeps the contract."""
        if not folder.is_dir():
            return [Violation(folder.name, "the folder does not exist")]
        return [violation for rule in self.rules for violation in rule.check(folder)]

    def count_rows(self, folder: Path) -> int | None:
        """Rows over all `part-*.parquet` files, or None where the part has no such table."""
        files = sorted(folder.glob("part-*.parquet"))
        return sum(pq.read_metadata(path).num_rows for path in files) if files else None

    def describe(self) -> dict[str, Any]:
        """What the snapshot in `frozen/` holds: any change of it must come with a new version."""
        return {"name": self.name, "version": self.version, "rules": [rule.describe() for rule in self.rules]}


def _read_column(path: Path, column: str) -> pa.ChunkedArray:
    # ParquetFile, not read_table: the latter also treats folder names like `x=1` as partitions.
    with pq.ParquetFile(path) as file:
        return file.read(columns=[column]).column(0)


def schema_differences(found: pa.Schema, expected: pa.Schema) -> Iterator[str]:
    """Yield one sentence per column that is missing, unexpected or of another type."""
    for wanted in expected:
        if wanted.name not in found.names:
            yield f"column {wanted.name!r} ({wanted.type}) is missing; found: {', '.join(found.names)}"
        elif found.field(wanted.name).type != wanted.type:
            yield f"column {wanted.name!r} is {found.field(wanted.name).type}, expected {wanted.type}"
    if extra := [name for name in found.names if name not in expected.names]:
        yield f"unexpected columns {extra}; expected: {', '.join(expected.names)}"


def safetensors_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: tensor name -> {dtype, shape, data_offsets}, and `__metadata__`.

    Raises ValueError when the file is cut short, longer than its header says, or no safetensors file at all.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if not 2 <= length <= size - 8:
            raise ValueError(f"is no safetensors file: {size} bytes, header length says {length}")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"has an unreadable safetensors header ({error})") from error
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if expected != size:
        raise ValueError(f"is {size} bytes long, its header describes {expected}: cut short or damaged")
    return header
