"""Zip files whose members are read with limits: .docx, .odt, .pptx, .xlsx and .epub are such.

Only the members that hold text are unpacked, each in memory; a member that unpacks to far more than its size,
or a file with more text than a book, is a bomb.
"""

from __future__ import annotations

import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from stages.corpus_prep.reading.damage import DamagedFile
from stages.corpus_prep.reading.sources import SourceFile
from stages.corpus_prep.reading.streams import read_head

MAX_MEMBERS = 20_000
MAX_UNPACKED_BYTES = 256 << 20
#: XML of spreadsheets packs to a fiftieth; deflate ends at 1/1032.
MAX_RATIO = 200
FREE_BYTES = 4 << 20
_OLE = "an old binary Office file, or one with a password"


class Archive:
    """An open zip file. Raises DamagedFile for what is broken, encrypted or too large."""

    def __init__(self, zipped: zipfile.ZipFile) -> None:
        self._zipped = zipped
        self._unpacked_bytes = 0
        self.names = zipped.namelist()
        if len(self.names) > MAX_MEMBERS:
            raise DamagedFile("bomb", f"holds {len(self.names):,} files", "leave it out")

    def read(self, name: str) -> bytes:
        """A member's bytes."""
        info = self._zipped.getinfo(name)
        if info.flag_bits & 1:
            raise DamagedFile("password", "is encrypted", "save it without its password")
        self._unpacked_bytes += info.file_size
        inflated = info.file_size > FREE_BYTES and info.file_size > MAX_RATIO * max(1, info.compress_size)
        if inflated or self._unpacked_bytes > MAX_UNPACKED_BYTES:
            raise DamagedFile(
                "bomb",
                f"unpacks to over {self._unpacked_bytes:,} bytes ({name}: {info.compress_size:,} packed)",
                "leave it out, or unpack it yourself if it is what it should be",
            )
        # zipfile reads no byte more than the size that was checked here, whatever the data does.
        return self._zipped.read(info)

    def xml(self, name: str) -> ElementTree.Element:
        """A member as XML. Entities of its own are refused: Office writes none, bombs are made of them."""
        data = self.read(name)
        if b"<!ENTITY" in data[:100_000]:
            raise DamagedFile("bomb", f"{name} declares entities", "leave it out")
        try:
            return ElementTree.fromstring(data)
        except ElementTree.ParseError as error:
            raise DamagedFile("broken", f"{name} in it is no XML: {error}", "save it again") from None


@contextmanager
def opened_archive(file: SourceFile) -> Iterator[Archive]:
    """The zip file. Raises DamagedFile from whatever is wrong with it while it is open."""
    try:
        read_head(file)
    except DamagedFile as damage:
        if _OLE in damage.detail:
            raise DamagedFile("password", f"is {_OLE}", "save it anew without a password") from None
        raise
    try:
        with zipfile.ZipFile(file.path) as zipped:
            yield Archive(zipped)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        raise DamagedFile("broken", f"is no whole {file.kind} file: {error}", "copy it again") from None
    except KeyError as error:
        raise DamagedFile("broken", f"lacks a part: {error}", "save it again") from None


def local(element: Any) -> str:
    """The tag without its namespace."""
    return str(element.tag).rpartition("}")[2]


def attribute(element: ElementTree.Element, name: str) -> str:
    """An attribute whatever its namespace; "" if there is none."""
    return next((value for key, value in element.items() if key.rpartition("}")[2] == name), "")


def child(element: ElementTree.Element, *path: str) -> ElementTree.Element | None:
    """The first child of a tag, and its first child of the next, whatever their namespaces."""
    found: ElementTree.Element | None = element
    for name in path:
        found = next((c for c in found if local(c) == name), None) if found is not None else None
    return found


def relations(archive: Archive, name: str) -> dict[str, tuple[str, str]]:
    """Id -> (type, member) of what an Office part refers to."""
    folder, base = posixpath.split(name)
    path = f"{folder}/_rels/{base}.rels" if folder else f"_rels/{base}.rels"
    if path not in archive.names:
        return {}
    found = {}
    for relation in archive.xml(path):
        target = posixpath.normpath(posixpath.join("/" + folder, relation.get("Target", "")))
        kind = relation.get("Type", "").rpartition("/")[2]
        found[relation.get("Id", "")] = (kind, target.lstrip("/"))
    return found


def title_of(archive: Archive, member: str) -> str:
    """The title among the properties of an Office file; "" where it has none."""
    if member not in archive.names:
        return ""
    titles = (e.text or "" for e in archive.xml(member).iter() if local(e) == "title")
    return " ".join(next(titles, "").split())[:200]
