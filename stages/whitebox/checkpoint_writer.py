"""Checkpoints in the background: the training goes on while a thread writes a copy to the disk.

The copy is taken between two steps, so it is one state and not a mixture. Nothing waits but a save that
finds the one before it unfinished, a stop, and the end of the run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from stages.whitebox.training_state import Keep, TrainingState, list_checkpoints, save_state


class CheckpointWriter:
    """Writes one checkpoint at a time.

    A checkpoint that cannot be written, as on a full disk, is said aloud and does not end the run: the one
    before it stays, and the next one tries again. Only where nothing comes after it, `finish` raises.
    """

    def __init__(self, folder: Path, keep: Keep, log: Callable[[str], None]) -> None:
        self.folder, self.keep, self.log = folder, keep, log
        self._thread: threading.Thread | None = None
        self._step = 0
        self._error: OSError | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written now."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, step: int, state: TrainingState) -> None:
        """Begin to write; nobody may change the tensors any more. Waits for the one before."""
        self.wait()
        self._step = step
        # Not a daemon: a program that ends lets the checkpoint become whole.
        self._thread = threading.Thread(target=self._write, args=(state,), name="checkpoint")
        self._thread.start()

    def tell(self) -> None:
        """Say what went wrong with a checkpoint that is over by now."""
        if self._thread is None or self._thread.is_alive():
            return
        error = self._end()
        if error is not None:
            self.log(f"{self._what_failed(error)}; the training goes on and tries again at the next one")

    def wait(self) -> None:
        """Until nothing is being written; an error is said aloud."""
        if self._thread is not None:
            self._thread.join()
        self.tell()

    def finish(self) -> None:
        """Until the last checkpoint is whole.

        Raises:
            OSError: it could not be written.
        """
        if self._thread is None:
            return
        self._thread.join()
        error = self._end()
        if error is not None:
            raise OSError(error.errno, self._what_failed(error)) from error

    def _end(self) -> OSError | None:
        self._thread, error, self._error = None, self._error, None
        return error

    def _write(self, state: TrainingState) -> None:
        try:
            save_state(self.folder, self._step, state, self.keep)
        except OSError as error:
            self._error = error

    def _what_failed(self, error: OSError) -> str:
        whole = list_checkpoints(self.folder)
        newest = f"the newest whole one is {whole[0].name}" if whole else "there is no other"
        return f"the checkpoint of step {self._step} could not be written ({error}): {newest}"
