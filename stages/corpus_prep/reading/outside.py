"""Where the input of this stage lies, for who has to bring it to where the stage runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.corpus_prep.harvested_python import DESCRIPTION_VARIABLE, description, this_python
from stages.corpus_prep.reading.downloads import FOLDER_VARIABLE, OFFLINE_VARIABLE, downloads_folder
from stages.corpus_prep.reading.source_entries import is_address, parse_entry
from stages.corpus_prep.reading.sources import InputConfig, expand
from stages.runtime.fingerprint import REPOSITORY
from stages.runtime.spec import Outside

HARVEST = "/harvest"
PLACES = ("sources", "benchmark_sources", "good_text", "bad_text")
"""Settings that name files as `sources` does."""


def outside_inputs(config: InputConfig) -> Outside:
    """The user's own files at their own places; else this Python's folders, and what describes it.

    Remote files are fetched here, because where the stage runs there may be no network.
    Raises UserError for inputs that are not there.
    """
    named = {name: getattr(config, name, ()) for name in PLACES}
    paths = [path for name, patterns in named.items() for path in _paths(name, patterns)]
    outside = Outside() if config.sources else _harvest()
    variables = {}
    if any(is_address(entry) for patterns in named.values() for entry in patterns):
        paths.append(downloads_folder())
        variables = {FOLDER_VARIABLE: str(downloads_folder()), OFFLINE_VARIABLE: "1"}
    return replace(outside, same_place=tuple(paths), environment={**outside.environment, **variables})


def _paths(setting: str, patterns: Sequence[str]) -> Iterator[Path]:
    """What each pattern names or searches, and files elsewhere that links in there lead to."""
    entries = [parse_entry(setting, pattern) for pattern in patterns]
    roots = [_root(entry.path) for entry in entries if not entry.is_remote]
    yield from roots
    for file in expand(setting, patterns) if patterns else []:
        real = file.path.resolve()
        if not file.address and not any(real == root or root in real.parents for root in roots):
            yield real


def _root(pattern: str) -> Path:
    """The file, the folder, or the last folder before the first sign of a glob."""
    path = Path(pattern).expanduser()
    if path.exists():
        return path
    plain = []
    for part in path.parts:
        if any(sign in part for sign in "*?["):
            break
        plain.append(part)
    return Path(*plain)


def _compiled_modules() -> list[dict[str, Any]]:
    """Asked of an interpreter of its own: in this one somebody may have replaced `sys.excepthook`, say."""
    program = [sys.executable, "-m", "stages.corpus_prep.interpreter_docs"]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _harvest() -> Outside:
    python = replace(this_python(), compiled_modules=tuple(_compiled_modules()))
    folders = {f"{HARVEST}/packages-{n}": Path(folder) for n, folder in enumerate(python.package_folders)}
    library = f"{HARVEST}/standard-library"
    described = f"{HARVEST}/python.json"
    return Outside(
        moved={library: python.standard_library, **folders},
        documents={described: description(python, library, list(folders))},
        environment={DESCRIPTION_VARIABLE: described},
    )
