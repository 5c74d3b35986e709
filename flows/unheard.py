"""Printing where the reader may die: a worker that is killed takes along the pipe that its runs print to.

Measured: the next line that such a run prints ends it. rich, which draws our lines and Prefect's log, answers
a broken pipe with SystemExit, and the run is a crashed one although nothing was wrong with it.
"""

from __future__ import annotations

import os

from rich.console import Console


def go_on_unheard() -> None:
    """Let what this process prints be lost, and nothing else, once nobody reads it any more.

    For every console of the process: Prefect makes one of its own, which we cannot replace.
    """
    Console.on_broken_pipe = _print_to_nowhere  # type: ignore[assignment, method-assign]


def _print_to_nowhere(console: Console) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, console.file.fileno())
    os.close(nowhere)
