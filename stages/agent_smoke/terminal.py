"""What the chat shows and how it asks: with prompts and dim notes on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from typing import TextIO

DIM, BOLD, PLAIN = "\033[2m", "\033[1m", "\033[0m"
ASK = "you> "


class Terminal:
    """Reads questions from one stream and writes the conversation to another."""

    def __init__(self, source: TextIO, target: TextIO) -> None:
        self.source = source
        self.target = target
        self.interactive = source.isatty() and target.isatty()
        self.coloured = target.isatty() and "NO_COLOR" not in os.environ
        self._line_open = False
        self._label = ""

    def greet(self, labels: Iterable[str], tools: Collection[str]) -> None:
        """Say who answers and how to get help; nothing where no person looks on."""
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (arrow keys and history in `input`)
            self.note(f"{', '.join(labels)}; tools: {', '.join(tools)}\n/help for help, /quit to leave")

    def wait_note(self, text: str) -> None:
        """A note for a person who waits; nothing elsewhere."""
        if self.interactive:
            self.note(text)

    def questions(self) -> Iterator[str]:
        """Lines as they are typed, until end of file. KeyboardInterrupt at the prompt is passed on."""
        if not self.interactive:
            yield from self.echo(line.rstrip("\n") for line in self.source)
            return
        while True:
            try:
                yield input(ASK)
            except EOFError:
                self.target.write("\n")
                return

    def echo(self, questions: Iterable[str]) -> Iterator[str]:
        """Questions that nobody types, shown before they are answered."""
        for question in questions:
            if question.strip():
                self.target.write(f"{ASK}{question}\n")
                self.target.flush()
                yield question

    def begin_answer(self, label: str) -> None:
        """The next text is this partner's."""
        self._label = label

    def write(self, text: str) -> None:
        """A piece of an answer, shown at once."""
        if not self._line_open:
            text = text.lstrip()
            if not text:
                return
            self.target.write(self._styled(f"{self._label}> ", BOLD))
            self._line_open = True
        self.target.write(text)
        self.target.flush()

    def end_line(self) -> None:
        """Close the line under way, if there is one."""
        if self._line_open:
            self.target.write("\n")
            self._line_open = False

    def note(self, text: str) -> None:
        """Something that is neither question nor answer."""
        self.end_line()
        self.target.write(self._styled(text, DIM) + "\n")
        self.target.flush()

    def _styled(self, text: str, style: str) -> str:
        return f"{style}{text}{PLAIN}" if self.coloured else text
