"""Files and functions stay small enough to read in one sitting, and names say what is inside."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

FORBIDDEN_NAMES = {"utils.py", "common.py", "helpers.py", "misc.py"}


def sources(repository: Path) -> list[Path]:
    return [
        p for package in ("flows", "stages", "data_contracts") for p in (repository / package).rglob("*.py")
    ]


def functions(repository: Path) -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in sources(repository):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_files_have_at_most_400_lines(repository: Path) -> None:
    long = {p.name: n for p in sources(repository) if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}


def test_functions_have_at_most_60_lines_and_a_median_of_about_12(repository: Path) -> None:
    lengths = {f"{path.name}:{node.name}": length(node) for path, node in functions(repository)}
    assert {name: n for name, n in lengths.items() if n > 60} == {}
    assert statistics.median(lengths.values()) <= 14


def test_file_names_say_what_is_inside(repository: Path) -> None:
    assert [p for p in sources(repository) if p.name in FORBIDDEN_NAMES] == []


def test_every_module_says_what_it_is_for(repository: Path) -> None:
    silent = [p.name for p in sources(repository) if not ast.get_docstring(ast.parse(p.read_text()))]
    assert [name for name in silent if name != "__main__.py"] == []


def test_flows_shadow_no_module_of_the_standard_library(repository: Path) -> None:
    # Prefect's loader puts flows/ first on the path, so flows/queue.py would hide the real one.
    import sys

    names = {p.stem for p in (repository / "flows").glob("*.py")}
    assert names & (set(sys.stdlib_module_names) | {"prefect"}) == set()
