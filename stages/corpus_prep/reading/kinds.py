"""Which kinds of file are read, how a name and the first bytes tell the kind, and why others are refused."""

from __future__ import annotations

from pathlib import Path

#: Read line by line or as running text; these may also be compressed.
TEXT_KINDS = (".txt", ".md", ".rst", ".org", ".html", ".jsonl", ".json", ".csv", ".tsv")
#: One file is one document, or one per chapter (.epub) or per row (.xlsx). They are compressed inside.
BINARY_KINDS = (".parquet", ".pdf", ".docx", ".odt", ".pptx", ".xlsx", ".epub", ".rtf")
#: Text, but never seen compressed.
OTHER_KINDS = (".ipynb", ".eml")
KINDS = (*TEXT_KINDS, *OTHER_KINDS, *BINARY_KINDS)
SAME_AS = {".htm": ".html", ".xhtml": ".html", ".markdown": ".md", ".ndjson": ".jsonl", ".text": ".txt"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
READABLE = " ".join(KINDS)

_PICTURE = "a picture: its text would have to be recognised, which this stage does not do"
_OLD_OFFICE = "an old binary Office file: save it as .docx, .xlsx or .pptx"
_ARCHIVE = "an archive: unpack it and name the folder"
_SOUND = "sound or film: there is no text in it"
_REFUSED = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".heic"), _PICTURE),
    **dict.fromkeys((".doc", ".xls", ".ppt"), _OLD_OFFICE),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), _ARCHIVE),
    **dict.fromkeys((".mp3", ".mp4", ".wav", ".mov", ".avi", ".mkv"), _SOUND),
    ".xml": "XML, and nothing says which of its elements hold text: convert it to .html, .md or .jsonl",
}
#: First bytes -> what they are. Longer marks first, where one begins like another.
_MARKS = (
    (b"%PDF-", "a PDF"),
    (b"PAR1", "a Parquet file"),
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "a zip archive (or .docx, .xlsx, .pptx, .odt, .epub)"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old binary Office file, or one with a password"),
    (b"{\\rtf", "rich text (.rtf)"),
    (b"\x89PNG\r\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3", "an SQLite database"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"7z\xbc\xaf", "a 7z archive"),
)
_EXPECTED = {
    ".pdf": "a PDF",
    ".parquet": "a Parquet file",
    ".rtf": "rich text (.rtf)",
    **dict.fromkeys((".docx", ".odt", ".pptx", ".xlsx", ".epub"), _MARKS[4][1]),
}


def kind_of(path: Path) -> str:
    """`.jsonl` for `x.jsonl`, `x.ndjson` and `x.jsonl.gz`; "" where we cannot read it."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in COMPRESSIONS
    if packed:
        suffixes.pop()
    kind = SAME_AS.get(suffixes[-1], suffixes[-1]) if suffixes else ""
    return kind if kind in (TEXT_KINDS if packed else KINDS) else ""


def why_refused(path: Path) -> str:
    """Why a file of this name is not read: a sentence without its full stop."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS and kind_of(path.with_suffix("")):
        return f"{path.with_suffix('').suffix} is compressed inside: unpack the {suffix}"
    if suffix in _REFUSED:
        return _REFUSED[suffix]
    return f"of no kind that can be read ({suffix or 'no suffix'})"


def sniffed(head: bytes) -> str:
    """What the first bytes say that the file is; "" where they are no known mark."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), "")


def contradiction(kind: str, head: bytes) -> str:
    """What the file really is, where its first bytes contradict its name; "" where they do not.

    A file with a mark of its own may have bytes before it (PDFs do), so a missing mark is no contradiction.
    """
    found = sniffed(head)
    return found if found and found != _EXPECTED.get(kind, "") else ""
