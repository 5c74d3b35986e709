"""The name of an artifact: a hash of everything that can change its content.

Code counts by its syntax tree, not its text: a changed comment, docstring or blank line reruns nothing. Only
files that the stage can import count, so a changed loss reruns the stages that use losses and no others.
Inputs count by content, so a stage that reruns to the same bytes lets everything after it be reused.
Packages count by version where that code imports them; what they import themselves does not.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from data_contracts.manifest import KeyParts
from stages.runtime.spec import StageConfig, StageSpec

REPOSITORY = Path(__file__).resolve().parents[2]
OUR_PACKAGES = ("stages", "data_contracts")
_NOT_CODE = {".py", ".pyc", ".md"}
_PARSER = threading.Lock()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces. Raises ValueError or TypeError for what has no exact JSON form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(key: KeyParts) -> str:
    """First 24 hex digits (96 bits) of the sha256 of the key."""
    return hashlib.sha256(canonical_json(key.model_dump(mode="json")).encode()).hexdigest()[:24]


def key_parts(
    spec: StageSpec,
    config: StageConfig,
    input_digests: Mapping[str, str],
    repository: Path = REPOSITORY,
    packages: Mapping[str, str] | None = None,
) -> KeyParts:
    """Collect what the fingerprint of `spec` covers; `input_digests` maps role -> part digest.

    `packages` are those where the stage will run, package -> version; None for what is installed here.
    """
    outside = spec.external_inputs(config) if spec.external_inputs else {}
    return KeyParts(
        stage=spec.name,
        version=spec.version,
        config=spec.key_config(config),
        code=code_digests(f"stages.{spec.name}.__main__", repository),
        inputs=dict(input_digests) | {f"source: {name}": digest for name, digest in outside.items()},
        packages=dict(installed_packages(spec.name, repository) if packages is None else packages),
    )


def explain_difference(old: KeyParts, new: KeyParts) -> list[str]:
    """One line per field that differs: `depth: 4 -> 6`, `code stages/whitebox/losses.py`, `input tokens`."""
    lines = []
    if old.version != new.version:
        lines.append(f"stage version: {old.version} -> {new.version}")
    lines += [f"{name}: {a} -> {b}" for name, a, b in _changed(_flat(old.config), _flat(new.config))]
    lines += [_code_line(name, a, b) for name, a, b in _changed(old.code, new.code)]
    lines += [_package_line(name, a, b) for name, a, b in _changed(old.packages, new.packages)]
    lines += [_input_line(name, a, b) for name, a, b in _changed(old.inputs, new.inputs)]
    return lines


_ABSENT = object()


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if before != after:
            yield name, _show(before), _show(after)


def _show(value: Any) -> str:
    return "(absent)" if value is _ABSENT else json.dumps(value, ensure_ascii=False)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {f"{prefix}{name}": item}
    return flat


def _code_line(name: str, before: str, after: str) -> str:
    change = "added" if before == "(absent)" else "removed" if after == "(absent)" else "changed"
    return f"code {name}" if change == "changed" else f"code {name} ({change})"


def _package_line(name: str, before: str, after: str) -> str:
    return f"package {name}: {before.strip(chr(34))} -> {after.strip(chr(34))}"


def _input_line(name: str, before: str, after: str) -> str:
    return f"input {name}: {before.strip(chr(34))[:8]} -> {after.strip(chr(34))[:8]}"


def code_digests(module: str, repository: Path = REPOSITORY) -> dict[str, str]:
    """File -> digest for every file of ours that `module` can import, and data files beside its entry."""
    digests: dict[str, str] = {}
    for path in sorted(import_closure(module, repository)):
        digests[path.relative_to(repository).as_posix()] = _digest_of(path)
    for path in _data_files(_module_path(module, repository)):
        digests[path.relative_to(repository).as_posix()] = _digest_of(path)
    return digests


def _data_files(entry: Path | None) -> list[Path]:
    if entry is None:
        return []
    folder = entry.parent
    return sorted(p for p in folder.rglob("*") if p.is_file() and not _is_left_over(p))


def _is_left_over(path: Path) -> bool:
    """Bytecode, compiled kernels, documentation, and what an editor leaves: swap files, backups."""
    if "__pycache__" in path.parts:  # numba keeps its kernels there, under suffixes of its own
        return True
    return path.suffix in _NOT_CODE or path.name.startswith((".", "#")) or path.name.endswith("~")


def imported_packages(module: str, repository: Path = REPOSITORY) -> list[str]:
    """Names of the packages from outside that `module` can import, sorted."""
    roots = {name.split(".")[0] for path in import_closure(module, repository) for name in _imports_of(path)}
    return sorted(roots - set(OUR_PACKAGES) - sys.stdlib_module_names)


def installed_packages(stage: str, repository: Path = REPOSITORY) -> dict[str, str]:
    """Package that a stage can import -> version that is installed; those that are not are left out."""
    versions: dict[str, str] = {}
    for name in imported_packages(f"stages.{stage}.__main__", repository):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = public_version(_installed_version(name))
    return versions


@lru_cache
def _installed_version(package: str) -> str:
    return metadata.version(package)


def public_version(version: str) -> str:
    """`2.13.0` of `2.13.0+cpu`: hardware does not count, and neither do builds of one version for it."""
    return version.partition("+")[0]


def import_closure(module: str, repository: Path = REPOSITORY) -> set[Path]:
    """Files reached from `module` by absolute imports inside our packages, lazy ones included."""
    seen: set[Path] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _module_path(name, repository)
        if path is None or path in seen:
            continue
        seen.add(path)
        waiting += [found for found in _imports_of(path) if found.split(".")[0] in OUR_PACKAGES]
        if "." in name:
            waiting.append(name.rpartition(".")[0])
    return seen


def _module_path(name: str, repository: Path) -> Path | None:
    base = repository.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imports_of(path: Path) -> list[str]:
    return list(_parsed_imports(path, *_stamp(path)))


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4096)
def _parsed_imports(path: Path, _modified: int, _size: int) -> tuple[str, ...]:
    found: list[str] = []
    for node in ast.walk(_parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(found)


def _digest_of(path: Path) -> str:
    return _content_digest(path, *_stamp(path))


@lru_cache(maxsize=4096)
def _content_digest(path: Path, _modified: int, _size: int) -> str:
    content = path.read_bytes()
    if path.suffix == ".py":
        content = syntax_without_comments(content).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def syntax_without_comments(source: bytes | str) -> str:
    """The syntax tree as text, without comments, positions, docstrings and other lone strings."""
    tree = _parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [statement for statement in body if not _is_lone_string(statement)]
            node.body = kept or ([ast.Pass()] if body else [])  # type: ignore[attr-defined]
    return ast.dump(tree)


def _parse(source: bytes | str) -> ast.Module:
    # CPython 3.11 counts the depth of the tree that it makes per interpreter, not per thread (its issue
    # 106905). A collector that runs in mid-tree lets other threads in, ours and other people's, and one that
    # parses too ends our parsing with "AST constructor recursion depth mismatch". So nobody is let in.
    with _PARSER:
        collects = gc.isenabled()
        gc.disable()
        try:
            return ast.parse(source)
        finally:
            if collects:
                gc.enable()


def _is_lone_string(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
