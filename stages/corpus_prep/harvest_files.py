"""Which files of the user's own Python the harvest reads: found by metadata, in a fixed order.

Light on purpose: planning a build computes the digests of these files, and planning must stay fast.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from stages.corpus_prep.harvested_python import harvested_python
from stages.runtime.errors import UserError, did_you_mean

STANDARD_LIBRARY = "python"

#: What Glassworks itself installs to run, without the packages that have little documentation (or, like
#: kubernetes, 70 MB of generated boilerplate). Test extras are not in it: adding them changes no corpus.
RUNTIME_PACKAGES = (
    STANDARD_LIBRARY,
    "numpy",
    "torch",
    "sqlalchemy",
    "networkx",
    "matplotlib",
    "prefect",
    "pydantic",
    "huggingface-hub",
    "redis",
    "pyarrow",
    "duckdb",
    "rich",
    "pillow",
    "pyparsing",
    "alembic",
    "protobuf",
    "websockets",
    "anyio",
    "docker",
    "fsspec",
    "chromadb",
    "markdown-it-py",
    "click",
    "typer",
    "cyclopts",
    "jinja2",
    "griffelib",
    "cryptography",
    "requests",
    "httpx",
    "urllib3",
    "aiohttp",
    "packaging",
    "attrs",
    "fastapi",
    "starlette",
    "pydantic-settings",
    "python-dateutil",
    "sentencepiece",
    "safetensors",
    "ftfy",
    "tqdm",
    "jsonschema",
    "filelock",
    "tenacity",
    "cloudpickle",
    "pyyaml",
    "regex",
    "opentelemetry-api",
    "opentelemetry-sdk",
)

#: Folders and files that hold tests, vendored copies or generated code.
# fmt: off
SKIPPED_PARTS = frozenset((
    "test", "tests", "testdata", "conftest", "_vendor", "vendor", "vendored", "_vendored", "extern",
    "externals", "_extern", "third_party", "thirdparty", "site-packages", "dist-packages", "__pycache__",
    "__main__", "setup", "_version", "examples", "_examples", "benchmarks", "_migrations",
    "migrations", "idlelib", "lib2to3", "turtledemo", "ensurepip", "encodings", "msilib", "distutils",
    "_pyrepl", "__phello__", "antigravity", "this", "_distutils", "sample_data",
))
# fmt: on
#: Large insides that hardly anybody calls by name; without them the limit reaches the parts that matter.
SKIPPED_MODULES = (
    "torch.ao",
    "torch.distributed",
    "torch.fx",
    "torch.onnx",
    "torch.testing",
    "sqlalchemy.testing",
    "prefect.server",
    "prefect.testing",
    "pydantic.v1",
    "duckdb.experimental",
)
MAX_SOURCE_BYTES = 10 << 20
"""Per package; public and shallow modules come first, so what a huge package loses is its inside."""


@dataclass(frozen=True)
class SourceFile:
    """One Python file: its dotted module name and where it lies."""

    module: str
    path: Path
    num_bytes: int

    @property
    def is_package(self) -> bool:
        """Whether relative imports in it start from itself."""
        return self.path.name == "__init__.py"


@dataclass(frozen=True)
class PackageFiles:
    """The files of one distribution that are read, ordered by module name."""

    name: str
    version: str
    files: tuple[SourceFile, ...]

    def digest(self) -> str:
        """sha256 over module names and file contents; for the standard library also over the interpreter."""
        whole = hashlib.sha256(f"{self.name} {self.version}".encode())
        for file in self.files:
            whole.update(f"\n{file.module} {hashlib.sha256(file.path.read_bytes()).hexdigest()}".encode())
        return whole.hexdigest()


def harvested_packages(packages: str | Sequence[str]) -> list[PackageFiles]:
    """The packages that the setting names, with their files.

    packages: "runtime", "all", or names of distributions ("python" is the standard library). Raises UserError
    for a name that is not installed.
    """
    if packages == "runtime":
        found = [_find(name) for name in RUNTIME_PACKAGES]
    elif packages == "all":
        found = [_find(name) for name in (STANDARD_LIBRARY, *_installed_names())]
    else:
        found = [_required(name) for name in ([packages] if isinstance(packages, str) else packages)]
    return [package for package in found if package is not None and package.files]


def normalised_name(name: str) -> str:
    """Distribution names as PEP 503 compares them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed_names() -> list[str]:
    folders = list(harvested_python().package_folders)
    names = {normalised_name(entry.name) for entry in metadata.distributions(path=folders) if entry.name}
    # Our own code must not be its own training data: each edit would rerun everything.
    return sorted(names - {"glassworks"})


def _required(name: str) -> PackageFiles:
    package = _find(name)
    if package is None:
        known = [STANDARD_LIBRARY, *_installed_names()]
        raise UserError(
            f"corpus_prep.packages names {name!r}, which is not installed{did_you_mean(name, known)}",
            hint='write "runtime", "all", or names as `pip list` shows them ("python": the standard library)',
        )
    return package


def _find(name: str) -> PackageFiles | None:
    python = harvested_python()
    if name == STANDARD_LIBRARY:
        return PackageFiles(name, python.version, _chosen(_standard_library_files(python.standard_library)))
    found = metadata.distributions(name=name, path=list(python.package_folders)) if name else iter(())
    distribution = next(iter(found), None)
    if distribution is None:
        return None
    files = _chosen(_distribution_files(distribution))
    return PackageFiles(normalised_name(name), distribution.version, files)


def _standard_library_files(root: Path) -> Iterator[tuple[tuple[str, ...], Path]]:
    for path in _walk(root):
        yield path.relative_to(root).parts, path


def _walk(folder: Path) -> Iterator[Path]:
    """Python files below `folder`, without the skipped folders (site-packages may be huge)."""
    for path in folder.iterdir():
        if path.suffix == ".py":
            yield path
        elif path.name.isidentifier() and path.name not in SKIPPED_PARTS and path.is_dir():
            yield from _walk(path)


def _distribution_files(distribution: metadata.Distribution) -> Iterator[tuple[tuple[str, ...], Path]]:
    record = distribution.read_text("RECORD")
    names = [row[0] for row in csv.reader(record.splitlines()) if row] if record else []
    if not names:
        names = [str(file) for file in distribution.files or []]
    for name in names:
        if name.endswith(".py"):
            yield tuple(name.split("/")), Path(str(distribution.locate_file(name)))


def _chosen(candidates: Iterator[tuple[tuple[str, ...], Path]]) -> tuple[SourceFile, ...]:
    """Public and shallow modules first, up to the size limit; then in the order of module names."""
    files = [file for parts, path in candidates if (file := _source_file(parts, path))]
    kept, total = [], 0
    for file in sorted(set(files), key=_importance):
        total += file.num_bytes
        if total > MAX_SOURCE_BYTES:
            break
        kept.append(file)
    return tuple(sorted(kept, key=lambda file: file.module))


def _source_file(parts: tuple[str, ...], path: Path) -> SourceFile | None:
    names = (*parts[:-1], parts[-1].removesuffix(".py"))
    if not all(name.isidentifier() for name in names) or SKIPPED_PARTS.intersection(names):
        return None
    try:
        num_bytes = path.stat().st_size
    except OSError:  # listed by the metadata, but no longer there
        return None
    module = ".".join(names[:-1] if names[-1] == "__init__" else names)
    if not module or module.startswith(SKIPPED_MODULES):
        return None
    return SourceFile(module, path, num_bytes)


def _importance(file: SourceFile) -> tuple[int, int, str]:
    folders = file.module.split(".") if file.is_package else file.module.split(".")[:-1]
    private = sum(name.startswith("_") for name in folders)
    return private, len(folders), file.module
