"""All nine stages look alike: who knows one knows where everything is in the others."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from stages.catalog import STAGES
from stages.runtime.spec import StageSpec

FILES = ("README.md", "__init__.py", "__main__.py", "spec.py", "run.py")
ENTRY = "from stages.{name}.run import run\nfrom stages.{name}.spec import SPEC"


def each_stage() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("spec", STAGES, ids=lambda spec: spec.name)


def test_there_are_nine_in_order() -> None:
    assert [spec.name for spec in STAGES] == [
        "corpus_prep",
        "tokenizer",
        "pretrain",
        "sft",
        "dpo",
        "quantize",
        "vector_store",
        "agent_smoke",
        "benchmark_eval",
    ]


def test_there_are_no_other_stages(repository: Path) -> None:
    folders = {p.parent.name for p in (repository / "stages").glob("*/__main__.py")}
    assert folders == {spec.name for spec in STAGES}


@each_stage()
def test_the_folder_has_its_files(repository: Path, spec: StageSpec) -> None:
    folder = repository / "stages" / spec.name
    assert [name for name in FILES if not (folder / name).is_file()] == []
    assert len((folder / "run.py").read_text().splitlines()) <= 150
    assert ENTRY.format(name=spec.name) in (folder / "__main__.py").read_text()


@each_stage()
def test_the_readme_says_what_a_user_needs(repository: Path, spec: StageSpec) -> None:
    text = (repository / "stages" / spec.name / "README.md").read_text().lower()
    for word in ("reads", "writes", f"glassworks rerun {spec.name}"):
        assert word in text


@each_stage()
def test_the_story_is_told_by_one_public_function(repository: Path, spec: StageSpec) -> None:
    tree = ast.parse((repository / "stages" / spec.name / "run.py").read_text())
    public = [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    assert "run" in public


@each_stage()
def test_every_setting_is_documented(spec: StageSpec) -> None:
    undocumented = [name for name, field in spec.config.model_fields.items() if not field.description]
    assert undocumented == []


@each_stage()
def test_inputs_are_parts_that_an_earlier_stage_writes(spec: StageSpec) -> None:
    earlier = {s.name: s for s in STAGES[: STAGES.index(spec)]}
    for role, read in spec.reads.items():
        assert read.stage in earlier, role
        assert earlier[read.stage].writes[read.part] is read.contract, role


def test_the_readme_table_names_every_stage(repository: Path) -> None:
    text = (repository / "README.md").read_text()
    rows = re.findall(r"^\| \d \| `(\w+)`", text, flags=re.MULTILINE)
    assert rows == [spec.name for spec in STAGES]
