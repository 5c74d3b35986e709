"""PDFs written here line by line come out as paragraphs; what has no text layer is refused."""

from __future__ import annotations

from pathlib import Path

import pypdf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.corpus_prep.reading.damage import ReadNotes
from stages.corpus_prep.reading.pdf_lines import text_of_pages
from stages.corpus_prep.reading.pieces import Piece
from stages.corpus_prep.reading.readers import read_piece
from stages.corpus_prep.reading.sources import SourceFile


def make_pdf(pages: list[list[str]], picture: bool = False) -> bytes:
    """A PDF of lines in Helvetica, or of pages with one grey dot."""
    objects = ["<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    size = "/Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 /Length 1"
    dot = f"<< /Type /XObject /Subtype /Image {size} >>"
    objects.append(f"{dot}\nstream\nA\nendstream")
    kids = []
    for lines in pages:
        drawn = "".join(f"1 0 0 1 50 {780 - 14 * n} Tm ({line}) Tj\n" for n, line in enumerate(lines))
        content = "/Im0 Do" if picture else f"BT /F1 10 Tf\n{drawn}ET"
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
        pictures = "/XObject << /Im0 2 0 R >>" if picture else ""
        resources = f"/Resources << /Font << /F1 1 0 R >> {pictures} >>"
        objects.append(
            f"<< /Type /Page /Parent PARENT /MediaBox [0 0 595 842] {resources}"
            f" /Contents {len(objects)} 0 R >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects.append(f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>")
    parent = f"{len(objects)} 0 R"
    objects.append(f"<< /Type /Catalog /Pages {parent} >>")
    out, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body.replace('PARENT', parent)}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    trailer = f"trailer\n<< /Size {size} /Root {size - 1} 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return f"{out}xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}".encode("latin-1")


def _read(path: Path, data: bytes) -> tuple[str, ReadNotes]:
    path.write_bytes(data)
    notes = ReadNotes(on_damage="skip")
    file = SourceFile(path.name, path, ".pdf", origin=path.name)
    return "".join(row.fields["text"] for row in read_piece(Piece(file), notes)), notes


def _page(number: int, *lines: str) -> list[str]:
    return ["The Tea Journal", *lines, f"- {number} -"]


def test_paragraphs_are_whole_across_lines_and_pages(tmp_path: Path) -> None:
    first = [
        "Water that is fresh from the well makes the best tea of all, and so it has",
        "always been said in the",
    ]
    second = ["mountains where the leaves are picked. A second sen-", "tence ends here."]
    pages = [_page(1, *first), _page(2, *second), _page(3, "Last words of it."), _page(4, "And the end.")]
    text, notes = _read(tmp_path / "a.pdf", make_pdf(pages))
    assert (
        "so it has always been said in the mountains where the leaves are picked. A second sentence ends"
        in text
    )
    assert "Journal" not in text
    assert "- 2 -" not in text
    assert not notes.rejects


def test_a_scan_is_refused_as_one(tmp_path: Path) -> None:
    text, notes = _read(tmp_path / "a.pdf", make_pdf([["x"], ["x"]], picture=True))
    assert not text
    assert [(r.reason, r.detail) for r in notes.rejects] == [
        ("image_only", "has 2 pages and no text layer, only pictures")
    ]
    assert _read(tmp_path / "b.pdf", make_pdf([["x"]]))[1].rejects[0].reason == "no_text"


def test_a_password_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "plain.pdf").write_bytes(make_pdf([["Secret words that nobody may read."]]))
    writer = pypdf.PdfWriter(clone_from=tmp_path / "plain.pdf")
    writer.encrypt("open sesame", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    data = (tmp_path / "locked.pdf").read_bytes()
    assert [r.reason for r in _read(tmp_path / "locked.pdf", data)[1].rejects] == ["password"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        # The word stands elsewhere in one, so it is one.
        (
            ["We measured the temperature of the kettle, and the temper-", "ature rose."],
            "and the temperature rose.",
        ),
        # It stands elsewhere with a hyphen.
        (
            ["a well-known fact is that the water boils, and it is well-", "known to all."],
            "it is well-known to all.",
        ),
        (
            ["this is the newest way, and it is the state-of-the-", "art of making it."],
            "the state-of-the-art of making",
        ),
        (
            ["it was the first time that somebody had asked the high-", "dimensional one"],
            "the high-dimensional one",
        ),
        (
            ["it was written by somebody who had worked on Chat-", "GPT and other things"],
            "on Chat-GPT and other",
        ),
    ],
)
def test_hyphens_at_line_ends(lines: list[str], expected: str) -> None:
    assert expected in text_of_pages(["\n".join(lines)])


def test_what_is_no_running_text_keeps_its_lines() -> None:
    page = "Prices\nTea 1.20 3.40 5.60\nCoffee 2.10 4.30 6.50\n• sugar\n• milk\n1 Introduction\nIt begins."
    assert text_of_pages([page]).split("\n\n")[0].split("\n") == page.split("\n")[:5]
    assert "\n1 Introduction\nIt begins." in text_of_pages([page])


def test_chinese_lines_join_without_a_space_and_radicals_are_characters() -> None:
    page = "湖边有一间木头小屋，屋顶上长满了青苔，门前的小路一直通到⽔边，\n夏天的晚上常有人来钓鱼。"
    page += "\n使 用 提 示 进 行 编 码 。"
    text = text_of_pages([page])
    assert "一直通到水边，夏天的晚上常有人来钓鱼。" in text
    assert "使用提示进行编码。" in text


@given(st.lists(st.lists(st.text("aé茶 .-1•\n\x00", max_size=40), max_size=8).map("\n".join), max_size=5))
def test_nothing_but_page_furniture_spaces_and_hyphens_is_lost(pages: list[str]) -> None:
    text = text_of_pages(pages[:1])
    lost = set("".join(pages[:1])) - set(text) - set(" \n\x00-")
    assert not lost
    text_of_pages(pages)
