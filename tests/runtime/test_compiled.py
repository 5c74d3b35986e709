"""Where machine code is kept: written where that may be, copied where not, and named by all sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.runtime import compiled

LOOP = "from stages.runtime.compiled import njit\n\n@njit\ndef loop():\n    return 1\n"


def test_machine_code_is_found_where_nobody_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(compiled.FOLDER_VARIABLE, str(tmp_path))
    baked = compiled.kernel_folder()
    assert baked.parent == tmp_path and baked.is_dir()
    (baked / "loop.nbc").write_text("code")
    monkeypatch.setattr(compiled, "_is_writable", lambda folder: False)
    own = compiled.kernel_folder()
    assert own != baked and (own / "loop.nbc").read_text() == "code"


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(compiled.FOLDER_VARIABLE, str(tmp_path / "file"))
    assert compiled.kernel_folder().is_dir()


def test_the_digest_is_of_every_file_with_loops(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    loops, other = tmp_path / "inner" / "loops.py", tmp_path / "other.py"
    loops.write_text(LOOP)
    other.write_text("x = 1\n")
    first = compiled.sources_digest(tmp_path)
    other.write_text("x = 2\n")
    assert compiled.sources_digest(tmp_path) == first
    loops.write_text(LOOP.replace("1", "2"))
    assert compiled.sources_digest(tmp_path) != first
