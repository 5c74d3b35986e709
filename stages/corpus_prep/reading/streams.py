"""The bytes of a file as the readers want them: unpacked, in UTF-8 or as they are, and known to be whole.

A packed file is watched while it is unpacked: one that grows far beyond its size is a bomb. UTF-16 is turned
into UTF-8, whose line ends can be found bytewise.
"""

from __future__ import annotations

import codecs
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast

import pyarrow as pa

from stages.corpus_prep.reading.damage import DamagedFile, ReadNotes
from stages.corpus_prep.reading.kinds import contradiction
from stages.corpus_prep.reading.sources import SourceFile
from stages.runtime.errors import RetryableError

HEAD_BYTES = 4096
#: Text packs to a third or a tenth, logs to a fiftieth. deflate ends at 1/1032, zstd nowhere.
MAX_UNPACKING_RATIO = 200
FREE_UNPACKED_BYTES = 64 << 20


@dataclass(frozen=True)
class FileState:
    """What changes when somebody writes a file: its size in bytes, time of change in ns, and inode."""

    size: int
    modified: int
    inode: int

    @classmethod
    def of(cls, file: SourceFile) -> FileState:
        """Raises DamagedFile where there is no regular file."""
        try:
            status = file.path.stat()
        except OSError as error:
            raise _unreadable(error) from None
        if not stat.S_ISREG(status.st_mode):
            raise DamagedFile(
                "not_a_file", "is no regular file", "name a file; a pipe can be saved: cat PIPE > FILE"
            )
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)

    def check(self, file: SourceFile) -> None:
        """Raises RetryableError if the file is another one now."""
        now = FileState.of(file)
        if now != self:
            raise RetryableError(
                f"{file.path} changed while it was read: it had {self.size:,} bytes, now {now.size:,}",
                hint="wait until it is written, then build again; what was read of it is thrown away",
            )


def _unreadable(error: OSError) -> DamagedFile:
    if isinstance(error, PermissionError):
        return DamagedFile("no_permission", f"may not be read: {error.strerror}", "change its mode")
    if error.errno == errno.ELOOP:
        return DamagedFile("not_a_file", "is a symbolic link that leads to itself", "remove the link")
    return DamagedFile("not_a_file", f"cannot be opened: {error.strerror}", "name a file that is there")


def read_head(file: SourceFile) -> bytes:
    """The first 4,096 bytes as they lie on disk. Raises DamagedFile for what is unreadable or is misnamed."""
    FileState.of(file)
    try:
        with open(file.path, "rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError as error:
        raise _unreadable(error) from None
    kind = {"gzip": ".gz", "zstd": ".zst"}.get(file.compression, file.kind)
    found = contradiction(kind, head)
    if found and found != file.compression:
        raise DamagedFile(
            "wrong_suffix", f"is named {kind} and is {found}", "give it the name that says what it is"
        )
    return head


class UnpackedStream:
    """The uncompressed bytes of a packed file. Raises DamagedFile for a broken one and for a bomb."""

    def __init__(self, file: SourceFile) -> None:
        self._raw = open(file.path, "rb")  # noqa: SIM115 (closed by close)
        self._packed_bytes = os.fstat(self._raw.fileno()).st_size
        self._name = file.compression
        self._stream = pa.CompressedInputStream(pa.PythonFile(self._raw, mode="r"), file.compression)
        self._unpacked_bytes = 0

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; fewer only at the end."""
        try:
            data: bytes = self._stream.read(size if size >= 0 else None)
        except (OSError, pa.ArrowInvalid) as error:
            raise self._damage(error) from None
        self._unpacked_bytes += len(data)
        over = self._unpacked_bytes > MAX_UNPACKING_RATIO * max(1, self._raw.tell())
        if over and self._unpacked_bytes > FREE_UNPACKED_BYTES:
            raise DamagedFile(
                "bomb",
                f"has {self._packed_bytes:,} bytes and unpacks to over {self._unpacked_bytes:,}",
                "unpack it yourself if it is what it should be",
            )
        return data

    def _damage(self, error: Exception) -> DamagedFile:
        said = str(error).splitlines()[0][:120]
        short = "truncated" in said.lower()
        return DamagedFile(
            "cut_short" if short else "broken",
            f"is no whole {self._name} file: {said}",
            f"copy it again; it was cut short or is no {self._name}",
        )

    def close(self) -> None:
        """Close both files."""
        self._stream.close()
        self._raw.close()


@contextmanager
def opened(file: SourceFile, notes: ReadNotes) -> Iterator[IO[bytes]]:
    """The uncompressed bytes of a text file, in UTF-8 if they were in UTF-16. Raises DamagedFile."""
    read_head(file)
    stream: Any = UnpackedStream(file) if file.compression else open(file.path, "rb")  # noqa: SIM115
    try:
        encoding = utf16_encoding(stream.read(HEAD_BYTES))
        stream = _from_the_start(file, stream)
        if encoding:
            notes.count(encoding)
            stream = Transcoded(stream, encoding)
        yield cast("IO[bytes]", stream)
    finally:
        stream.close()


def _from_the_start(file: SourceFile, stream: Any) -> Any:
    if not file.compression:
        stream.seek(0)
        return stream
    stream.close()
    return UnpackedStream(file)


class Transcoded:
    """A stream of UTF-16 read as UTF-8; what is no UTF-16 becomes U+FFFD."""

    def __init__(self, stream: Any, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
        self._held = b""
        self._ended = False

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes of UTF-8; fewer only at the end."""
        while (size < 0 or len(self._held) < size) and not self._ended:
            data = self._stream.read(1 << 20)
            self._ended = not data
            self._held += self._decoder.decode(data, final=self._ended).encode("utf-8", "replace")
        cut = len(self._held) if size < 0 else size
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def close(self) -> None:
        """Close the stream below."""
        self._stream.close()


def utf16_encoding(head: bytes) -> str:
    """ "utf-16", "utf-16-le", "utf-16-be", or "" for text that is no UTF-16; told from the first 4,096 bytes.

    Without a mark there must be zero bytes, as line ends, spaces and ASCII have and no other encoding of text
    does; and what comes out must be letters that people use, more so than with the bytes of each swapped.
    """
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" not in head:
        return ""
    whole = head[: len(head) // 2 * 2]
    texts = {encoding: whole.decode(encoding, "replace") for encoding in ("utf-16-le", "utf-16-be")}
    likely = {
        encoding: sum(_usualness(ord(character)) for character in text)
        for encoding, text in texts.items()
        if sum(_usualness(ord(character)) > 0 for character in text) >= 0.95 * len(text)
    }
    return max(likely, key=lambda encoding: likely[encoding], default="")


def _usualness(code: int) -> int:
    """2 for ASCII, spaces and punctuation of any script; 1 for letters of living ones; 0 for all else."""
    if code < 0x80:
        return 2 if code >= 0x20 or code in (9, 10, 13) else 0
    if 0x2000 <= code < 0x2070 or 0x3000 <= code < 0x3030 or 0xFF00 <= code < 0xFFF0:
        return 2
    return 1 if code < 0x0E00 or 0x3030 <= code < 0xD7B0 or code > 0xFFFF else 0
