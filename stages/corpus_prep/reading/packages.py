"""Libraries that read one kind of file each, imported when the first such file comes.

The imports themselves stand where they are used: the fingerprint finds the packages of a stage by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stages.corpus_prep.reading.damage import DamagedFile


@contextmanager
def needs(package: str, kind: str) -> Iterator[None]:
    """Around an import. Raises DamagedFile that says what to install where it fails."""
    try:
        yield
    except ImportError as error:
        raise DamagedFile(
            "missing_package",
            f"needs the package {package} to be read, because it is {kind} ({error})",
            f"pip install {package}",
        ) from None
