"""images/Dockerfile, read: its targets, what each copies, and the piece of it that builds one image.

The classic builder builds every target that stands above the one asked for, and both builders want all
files of the context. So our command sends for each image only its own targets and files, on top of the
image below it, which has been built before. The file as a whole serves who calls `docker build` by hand.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from stages.runtime.fingerprint import REPOSITORY

DOCKERFILE = REPOSITORY / "images" / "Dockerfile"
OWN = "images/own/"
"""What a build is given from outside, wheels and certificates; not part of the repository."""
BASE_IMAGE = "${BASE_IMAGE}"
_FROM = re.compile(r"FROM (\S+) AS (\w[\w-]*)")


@dataclass(frozen=True)
class Target:
    """One `FROM parent AS name` and the lines up to the next."""

    name: str
    parent: str
    lines: tuple[str, ...]

    @property
    def is_image(self) -> bool:
        """Whether it is an image to keep, and not a place where packages are installed or loops compiled."""
        return not self.name.endswith(("packages", "kernels"))

    @property
    def copies(self) -> tuple[str, ...]:
        """Paths that it copies from the repository."""
        return tuple(words[1] for words in self._copy_lines() if not words[1].startswith("--"))

    @property
    def copied_targets(self) -> tuple[str, ...]:
        """Targets that it copies from."""
        found = (w[1].removeprefix("--from=") for w in self._copy_lines() if w[1].startswith("--from="))
        return tuple(dict.fromkeys(found))

    def _copy_lines(self) -> Iterator[list[str]]:
        return (line.split() for line in self.lines if line.startswith("COPY "))


@cache
def targets(dockerfile: Path = DOCKERFILE) -> Mapping[str, Target]:
    """All targets by name, in the order of the file."""
    found: dict[str, Target] = {}
    lines: list[str] = []
    for line in dockerfile.read_text(encoding="utf-8").splitlines():
        if start := _FROM.match(line):
            lines = []
            found[start[2]] = Target(start[2], start[1], ())
        elif found and line and not line.startswith("#"):
            lines.append(line)
            last = list(found.values())[-1]
            found[last.name] = Target(last.name, last.parent, tuple(lines))
    return found


def image_targets() -> list[Target]:
    """The targets that are images, each after the one that it is built on."""
    return [target for target in targets().values() if target.is_image]


def with_parents(names: list[str]) -> list[Target]:
    """The images of that name and those below them, in building order; all where none is named."""
    needed = set(names) or {target.name for target in image_targets()}
    for target in reversed(image_targets()):
        if target.name in needed and target.parent != BASE_IMAGE:
            needed.add(target.parent)
    return [target for target in image_targets() if target.name in needed]


def recipe(target: Target, parent_image: str) -> str:
    """A Dockerfile for one image on top of `parent_image`, with the other targets that it needs."""
    text = ["ARG BASE_IMAGE"]
    for needed in pieces(target):
        below = needed.parent
        if below in targets() and targets()[below].is_image:
            below = parent_image
        text += [f"FROM {below} AS {needed.name}", *needed.lines]
    return "\n".join(text) + "\n"


def pieces(target: Target) -> list[Target]:
    """`target` last, after the targets that it copies from and what those are built on."""
    waiting, found = [target.name], []
    while waiting:
        piece = targets()[waiting.pop()]
        found.append(piece)
        waiting += piece.copied_targets
        if piece.parent in targets() and not targets()[piece.parent].is_image:
            waiting.append(piece.parent)
    return [piece for piece in targets().values() if piece in found]


def copied_files(target: Target, arguments: Mapping[str, str]) -> list[Path]:
    """Files of the repository that go into the build, sorted; `arguments` fills in names such as ${TORCH}."""
    found: set[Path] = set()
    for piece in pieces(target):
        for source in piece.copies:
            if source != OWN:
                found |= set(_files(REPOSITORY / _filled(source, arguments)))
    return sorted(found)


def _filled(source: str, arguments: Mapping[str, str]) -> str:
    for name, value in arguments.items():
        source = source.replace(f"${{{name}}}", value)
    return source


def _files(path: Path) -> Iterator[Path]:
    """What .dockerignore lets through."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        skipped = file.suffix in {".pyc", ".md"} or "__pycache__" in file.parts
        if file.is_file() and not skipped:
            yield file


def source_digest(target: Target, arguments: Mapping[str, str]) -> str:
    """sha256 of all that the image is made of: its recipe, its files, and the same of those below it."""
    text = recipe(target, target.parent)
    whole = hashlib.sha256(text.encode())
    used = {name: value for name, value in arguments.items() if f"${{{name}}}" in text}
    whole.update(repr(sorted(used.items())).encode())
    for file in copied_files(target, arguments):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        whole.update(f"{file.relative_to(REPOSITORY).as_posix()} {content}\n".encode())
    if target.parent != BASE_IMAGE:
        whole.update(source_digest(targets()[target.parent], arguments).encode())
    return whole.hexdigest()[:24]
