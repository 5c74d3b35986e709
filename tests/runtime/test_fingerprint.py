"""What changes a fingerprint, and what must not."""

from __future__ import annotations

import ast
import gc
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from data_contracts.contract import Contract, FileRule
from data_contracts.manifest import KeyParts
from stages.runtime.errors import UserError
from stages.runtime.fingerprint import (
    canonical_json,
    code_digests,
    explain_difference,
    fingerprint,
    import_closure,
    imported_packages,
    key_parts,
    public_version,
    syntax_without_comments,
)
from stages.runtime.spec import StageConfig, StageSpec

FILES = {
    "stages/__init__.py": "",
    "stages/fake/__init__.py": '"""A stage."""\n',
    "stages/fake/__main__.py": "from stages.fake.run import run\nrun()\n",
    "stages/fake/run.py": "from stages.white import losses\n\ndef run():\n    return losses.loss(1)\n",
    "stages/fake/grammar.lark": "start: WORD\n",
    "stages/fake/README.md": "words\n",
    "stages/white/__init__.py": "",
    "stages/white/losses.py": "# a comment\ndef loss(x):\n    'what it is'\n    return x * 2\n",
    "stages/white/unused.py": "def other():\n    return 1\n",
}


class Config(StageConfig):
    depth: int = 4
    """Layers."""
    sources: tuple[str, ...] = ()
    """Own data."""


SPEC = StageSpec(
    name="fake",
    version=1,
    config=Config,
    writes={"numbers": Contract("numbers", 1, "", (FileRule("x"),))},
    external_inputs=lambda config: {Path(s).name: f"digest of {Path(s).name}" for s in config.sources},
    not_in_key=frozenset({"sources"}),
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def key(tree: Path, **settings: object) -> KeyParts:
    return key_parts(SPEC, SPEC.parse_config(settings), {"base": "aa"}, tree)


def edit(tree: Path, name: str, old: str, new: str) -> None:
    path = tree / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_the_closure_holds_what_can_be_reached_and_nothing_else(tree: Path) -> None:
    names = {p.relative_to(tree).as_posix() for p in import_closure("stages.fake.__main__", tree)}
    assert names == {
        "stages/__init__.py",
        "stages/fake/__init__.py",
        "stages/fake/__main__.py",
        "stages/fake/run.py",
        "stages/white/__init__.py",
        "stages/white/losses.py",
    }


@pytest.mark.parametrize(
    "name", [".run.py.swp", "run.py~", "#run.py#", "4913.pyc", "__pycache__/kernels.encode-1.py311.nbi"]
)
def test_what_an_editor_or_a_compiler_leaves_changes_nothing(tree: Path, name: str) -> None:
    before = fingerprint(key(tree))
    (tree / "stages/fake" / name).parent.mkdir(exist_ok=True)
    (tree / "stages/fake" / name).write_text("left over")
    assert fingerprint(key(tree)) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("stages/white/losses.py", "# a comment", "# another comment\n\n"),
        ("stages/white/losses.py", "'what it is'", "'something else'"),
        ("stages/white/unused.py", "return 1", "return 2"),
        ("stages/fake/README.md", "words", "other words"),
    ],
)
def test_what_cannot_change_the_result_changes_nothing(tree: Path, name: str, old: str, new: str) -> None:
    before = fingerprint(key(tree))
    edit(tree, name, old, new)
    assert fingerprint(key(tree)) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("stages/white/losses.py", "x * 2", "x * 3"),
        ("stages/fake/grammar.lark", "WORD", "NUMBER"),
    ],
)
def test_changed_code_is_named(tree: Path, name: str, old: str, new: str) -> None:
    before = key(tree)
    edit(tree, name, old, new)
    assert explain_difference(before, key(tree)) == [f"code {name}"]


def test_packages_count_where_the_code_imports_them(tree: Path) -> None:
    assert key(tree).packages == {}
    edit(tree, "stages/white/losses.py", "# a comment", "import numpy.linalg\nimport math, no_such_package")
    assert imported_packages("stages.fake.__main__", tree) == ["no_such_package", "numpy"]
    assert key(tree).packages == {"numpy": metadata.version("numpy")}
    edit(tree, "stages/white/unused.py", "return 1", "import pyarrow")
    assert key(tree).packages.keys() == {"numpy"}


def test_a_changed_package_is_named_with_both_versions(tree: Path) -> None:
    config = SPEC.parse_config({})
    old, new = (
        key_parts(SPEC, config, {}, tree, packages=found)
        for found in ({"numpy": "2.3.0", "duckdb": "1.4"}, {"numpy": "2.4.0"})
    )
    assert fingerprint(old) != fingerprint(new)
    assert explain_difference(old, new) == [
        "package duckdb: 1.4 -> (absent)",
        "package numpy: 2.3.0 -> 2.4.0",
    ]


def test_builds_of_one_version_for_other_hardware_count_as_one() -> None:
    assert public_version("2.13.0+cpu") == public_version("2.13.0") == "2.13.0"


def test_a_function_without_a_body_still_parses() -> None:
    assert syntax_without_comments("def f():\n    'only words'\n") == syntax_without_comments(
        "def f():\n  pass"
    )
    assert syntax_without_comments("x = 'kept'") != syntax_without_comments("x = 'other'")


def test_differences_are_named_field_by_field(tree: Path) -> None:
    old, new = key(tree), key(tree, depth=6, sources=("/somewhere/a.txt",))
    new = new.model_copy(update={"inputs": new.inputs | {"base": "bb"}, "version": 2})
    assert explain_difference(old, new) == [
        "stage version: 1 -> 2",
        "depth: 4 -> 6",
        "input base: aa -> bb",
        "input source: a.txt: (absent) -> digest o",
    ]


def test_where_own_data_lies_does_not_count_but_what_it_holds_does(tree: Path) -> None:
    here, there = key(tree, sources=("/here/a.txt",)), key(tree, sources=("/there/a.txt",))
    assert fingerprint(here) == fingerprint(there) != fingerprint(key(tree, sources=("/here/b.txt",)))


def test_only_exact_json_is_hashed() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None, "é"]}) == '{"a":[1.5,null,"é"],"b":1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})
    with pytest.raises(TypeError):
        canonical_json({"x": Path("y")})


def test_this_repository_counts_the_white_box_where_it_is_used(repository: Path) -> None:
    files = code_digests("stages.sft.__main__", repository)
    assert "stages/whitebox/losses.py" in files
    assert "stages/whitebox/losses.py" not in code_digests("stages.corpus_prep.__main__", repository)


def test_configuration_errors_name_the_field() -> None:
    with pytest.raises(UserError, match="did you mean 'depth'"):
        SPEC.parse_config({"deth": 3})


@pytest.fixture
def eager_collector() -> Iterator[None]:
    """The collector runs every hundred objects, on all of them."""
    usual = gc.get_threshold()
    gc.set_threshold(100, 1, 1)
    yield
    gc.set_threshold(*usual)


class ParsesAtItsEnd:
    """Rubbish whose end lets another thread parse, as a connection or a lock may."""

    ended = 0

    def __init__(self) -> None:
        self.cycle = self

    def __del__(self) -> None:
        other = threading.Thread(target=ast.parse, args=("def f():\n    return a + b * (c - d)",))
        other.start()
        other.join()
        ParsesAtItsEnd.ended += 1


def test_other_threads_that_parse_do_no_harm(eager_collector: None) -> None:
    source = "\n".join(f"x{i} = [({i} + y * (z - {i})) for y in range({i})]" for i in range(100))
    expected = syntax_without_comments(source)
    before = ParsesAtItsEnd.ended
    for _ in range(20):
        gc.disable()
        ParsesAtItsEnd()
        gc.enable()
        assert syntax_without_comments(source) == expected
    assert gc.isenabled() and ParsesAtItsEnd.ended - before >= 19
