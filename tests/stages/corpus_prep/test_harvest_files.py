"""What the harvest would read: a closed set, in a fixed order, with digests that follow the content."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from stages.corpus_prep import harvest_files
from stages.corpus_prep.harvest_files import (
    RUNTIME_PACKAGES,
    STANDARD_LIBRARY,
    PackageFiles,
    SourceFile,
    harvested_packages,
    normalised_name,
)
from stages.runtime.errors import UserError


def test_the_standard_library_is_found_without_its_tests() -> None:
    (package,) = harvested_packages((STANDARD_LIBRARY,))
    modules = [file.module for file in package.files]
    assert {"textwrap", "json", "json.decoder", "collections", "pydoc_data.topics"} <= set(modules)
    assert modules == sorted(modules)
    assert not [m for m in modules if "test" in m.split(".") or m.startswith(("idlelib", "encodings"))]


def test_a_named_package_and_a_typo() -> None:
    (package,) = harvested_packages(("NumPy",))
    assert package.name == "numpy"
    assert "numpy.linalg" in {file.module for file in package.files}
    with pytest.raises(UserError, match=r"'nunpy'.*not installed \(did you mean 'numpy'\?\)"):
        harvested_packages(("nunpy",))


def test_all_packages_leave_our_own_code_out() -> None:
    names = [package.name for package in harvested_packages("all")]
    assert names[0] == STANDARD_LIBRARY
    assert names[1:] == sorted(names[1:])
    assert "glassworks" not in names
    assert "pytest" in names


def test_the_runtime_set_is_what_glassworks_installs(repository: Path) -> None:
    """Adding a test extra must not change the default corpus, so each name must come with the others."""
    from packaging.requirements import Requirement

    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    waiting = [Requirement(r) for r in project["dependencies"]]
    waiting += [Requirement(r) for extra in ("data", "torch", "vector", "flow") for r in extras[extra]]
    closure: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name = normalised_name(requirement.name)
        if name in closure:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        closure.add(name)
        for text in needs:
            need = Requirement(text)
            if need.marker is None or any(
                need.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)
            ):
                waiting.append(need)
    assert set(RUNTIME_PACKAGES) - {STANDARD_LIBRARY} <= closure


def test_the_limit_keeps_public_and_shallow_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ["p/__init__.py", "p/a.py", "p/sub/__init__.py", "p/sub/b.py", "p/_private/c.py", "p/tests/d.py"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x" * 100, encoding="utf-8")
    candidates = [(tuple(name.split("/")), tmp_path / name) for name in reversed(names)]
    monkeypatch.setattr(harvest_files, "MAX_SOURCE_BYTES", 400)
    assert [f.module for f in harvest_files._chosen(iter(candidates))] == ["p", "p.a", "p.sub", "p.sub.b"]


def test_the_digest_follows_names_and_contents(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("one", encoding="utf-8")
    package = PackageFiles("p", "1.0", (SourceFile("a", path, 3),))
    before = package.digest()
    assert before == package.digest()
    assert re.fullmatch("[0-9a-f]{64}", before)
    path.write_text("two", encoding="utf-8")
    assert package.digest() != before
    assert PackageFiles("p", "1.1", package.files).digest() != package.digest()
