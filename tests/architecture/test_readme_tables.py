"""A table of files that leaves one out sends a newcomer past it."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.parametrize("folder", ["stages/whitebox", "flows"])
def test_every_module_is_in_the_folders_readme(repository: Path, folder: str) -> None:
    readme = (repository / folder / "README.md").read_text(encoding="utf-8")
    modules = [path.name for path in (repository / folder).glob("*.py") if path.name != "__init__.py"]
    assert modules
    assert [name for name in sorted(modules) if f"`{name}`" not in readme] == []
