"""A described Python gives the harvest of the one that it describes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.corpus_prep.harvest import harvest
from stages.corpus_prep.harvest_files import PackageFiles, harvested_packages
from stages.corpus_prep.harvested_python import DESCRIPTION_VARIABLE, _described
from stages.corpus_prep.reading.outside import outside_inputs
from stages.corpus_prep.spec import CorpusPrepConfig
from stages.runtime.errors import UserError

PACKAGES = ("python", "pydantic")


def moved_here(folder: Path) -> Path:
    """The description as a container gets it, with its folders linked where it says."""
    outside = outside_inputs(CorpusPrepConfig())
    [(place, text)] = outside.documents.items()
    for target, source in outside.moved.items():
        link = folder / target.lstrip("/")
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(source)
    path = folder / place.lstrip("/")
    path.write_text(text.replace('"/harvest/', f'"{folder}/harvest/'))
    return path


def texts(packages: list[PackageFiles]) -> dict[str, str]:
    """Title -> text of everything; but of `sys`, in which the tests' own process replaces functions."""
    found = harvest(packages, 100_000_000)
    return {document.title: document.text for document in found if not document.title.startswith("sys")}


def test_the_described_python_gives_the_same_text_and_the_same_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = harvested_packages(PACKAGES)
    path = moved_here(tmp_path)
    monkeypatch.setenv(DESCRIPTION_VARIABLE, str(path))
    described = harvested_packages(PACKAGES)
    assert [p.digest() for p in described] == [p.digest() for p in own]
    assert all(tmp_path in file.path.parents for package in described for file in package.files)
    told = texts(described)
    monkeypatch.delenv(DESCRIPTION_VARIABLE)
    assert told == texts(own)


def test_compiled_modules_are_those_that_are_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = moved_here(tmp_path)
    told = json.loads(path.read_text())
    [math] = [m for m in told["compiled_modules"] if m["name"] == "math"]
    math["symbols"]["floor"]["docstring"] = "What lies under the carpet, as an int."
    path.write_text(json.dumps(told))
    monkeypatch.setenv(DESCRIPTION_VARIABLE, str(path))
    assert "What lies under the carpet" in texts(harvested_packages(("python",)))["math.floor"]


def test_another_grammar_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = moved_here(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"grammar": "3.99"}))
    _described.cache_clear()
    monkeypatch.setenv(DESCRIPTION_VARIABLE, str(path))
    with pytest.raises(UserError, match=r"your Python is 3\.99") as caught:
        harvested_packages(PACKAGES)
    assert "--backend process" in caught.value.hint


def test_own_files_are_brought_with_the_folders_that_globs_search(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "c.txt"
    for path in (tmp_path / "a.txt", tmp_path / "books" / "b.txt", real):
        path.write_text("text")
    (tmp_path / "books" / "c.txt").symlink_to(real)
    config = CorpusPrepConfig(sources=(str(tmp_path / "a.txt"), str(tmp_path / "books" / "*.txt")))
    outside = outside_inputs(config)
    assert outside.same_place == (tmp_path / "a.txt", tmp_path / "books", real)
    assert (dict(outside.moved), dict(outside.environment)) == ({}, {})


def test_what_this_process_has_replaced_is_not_described(monkeypatch: pytest.MonkeyPatch) -> None:
    # The command line replaces sys.excepthook; a stage of its own process would not see that.
    monkeypatch.setattr("sys.excepthook", lambda *_: None)
    [text] = outside_inputs(CorpusPrepConfig()).documents.values()
    [told] = [m for m in json.loads(text)["compiled_modules"] if m["name"] == "sys"]
    assert "traceback" in told["symbols"]["excepthook"]["signature"]
