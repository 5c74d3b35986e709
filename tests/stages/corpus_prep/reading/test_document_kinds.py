"""Documents of every kind, made here by hand, come out as Markdown with what matters in them."""

from __future__ import annotations

import json
import sys
import zipfile
from email.message import EmailMessage
from pathlib import Path

import pytest

from stages.corpus_prep.reading.damage import ReadNotes
from stages.corpus_prep.reading.pieces import Piece
from stages.corpus_prep.reading.readers import read_piece
from stages.corpus_prep.reading.sources import SourceFile, kind_of

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
R = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
A = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
P = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
RELATION = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def _read(path: Path) -> tuple[list[tuple[str, str]], ReadNotes]:
    notes = ReadNotes(on_damage="skip")
    file = SourceFile(path.name, path, kind_of(path), origin=path.name)
    return [(row.fields["title"], row.fields["text"]) for row in read_piece(Piece(file), notes)], notes


def _zipped(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, text in members.items():
            out.writestr(name, text)
    return path


def _paragraph(text: str, properties: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"


def test_word(tmp_path: Path) -> None:
    cell = "<w:tc>{}</w:tc>"
    table = "".join(
        f"<w:tr>{''.join(cell.format(_paragraph(text)) for text in row)}</w:tr>"
        for row in (("Fruit", "Price"), ("Apple", "2 | 3"))
    )
    numbered = '<w:numPr><w:ilvl w:val="{}"/><w:numId w:val="{}"/></w:numPr>'
    body = "".join(
        (
            _paragraph("苹果的故事", '<w:pStyle w:val="h1"/>'),
            _paragraph("It was <w:br/>late."),
            "<w:p><w:r><w:t>Kept</w:t></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>",
            _paragraph("first", numbered.format(0, 1)),
            _paragraph("second", numbered.format(0, 1)),
            _paragraph("inner", numbered.format(1, 2)),
            _paragraph("x = 1", '<w:pStyle w:val="code"/>'),
            _paragraph("y = 2", '<w:pStyle w:val="code"/>'),
            f"<w:tbl>{table}</w:tbl>",
        )
    ).replace("It was <w:br/>late.", "It was</w:t><w:br/><w:t>late.")
    style = '<w:style w:type="paragraph" w:styleId="{}"><w:name w:val="{}"/></w:style>'
    separator = f'<w:footnote w:type="separator">{_paragraph("-")}</w:footnote>'
    level = '<w:lvl w:ilvl="0"><w:numFmt w:val="decimal"/></w:lvl>'
    members = {
        "word/document.xml": f"<w:document {W}><w:body>{body}</w:body></w:document>",
        "word/header1.xml": f"<w:hdr {W}>{_paragraph('page head')}</w:hdr>",
        "word/styles.xml": f"<w:styles {W}>{style.format('h1', 'heading 1')}"
        f"{style.format('code', 'Source Code')}</w:styles>",
        "word/numbering.xml": f'<w:numbering {W}><w:abstractNum w:abstractNumId="7">{level}</w:abstractNum>'
        '<w:num w:numId="1"><w:abstractNumId w:val="7"/></w:num></w:numbering>',
        "word/footnotes.xml": f"<w:footnotes {W}>{separator}<w:footnote>{_paragraph('A note.')}</w:footnote>"
        "</w:footnotes>",
    }
    rows, _ = _read(_zipped(tmp_path / "a.docx", members))
    assert rows == [
        (
            "苹果的故事",
            "# 苹果的故事\n\nIt was\nlate.\n\nKept\n\n1. first\n2. second\n  - inner\n\n"
            "```\nx = 1\ny = 2\n```\n\n"
            "| Fruit | Price |\n| --- | --- |\n| Apple | 2 \\| 3 |\n\nA note.\n",
        )
    ]


def test_open_document(tmp_path: Path) -> None:
    space = 'xmlns:office="urn:o" xmlns:text="urn:t" xmlns:table="urn:b"'
    body = (
        '<text:h text:outline-level="2">Tea</text:h><text:p>Pour<text:s text:c="2"/>slowly<text:note>'
        "<text:note-citation>1</text:note-citation></text:note>.</text:p><text:list><text:list-item><text:p>green"
        "</text:p></text:list-item><text:list-item><text:p>black</text:p></text:list-item></text:list>"
        "<table:table><table:table-row><table:table-cell><text:p>a</text:p></table:table-cell><table:table-cell>"
        "<text:p>b</text:p></table:table-cell></table:table-row><table:table-row><table:table-cell><text:p>c"
        "</text:p></table:table-cell><table:table-cell><text:p>d</text:p></table:table-cell></table:table-row>"
        "</table:table>"
    )
    document = f"<d {space}><office:body><office:text>{body}</office:text></office:body></d>"
    rows, _ = _read(_zipped(tmp_path / "a.odt", {"content.xml": document}))
    assert rows == [
        ("Tea", "## Tea\n\nPour  slowly.\n\n- green\n- black\n\n| a | b |\n| --- | --- |\n| c | d |\n")
    ]


def test_slides_come_in_the_order_in_which_they_are_shown(tmp_path: Path) -> None:
    def slide(title: str, *lines: str) -> str:
        def shape(kind: str, texts: tuple[str, ...]) -> str:
            paragraphs = "".join(f"<a:p><a:r><a:t>{text}</a:t></a:r></a:p>" for text in texts)
            place = f'<p:nvSpPr><p:nvPr><p:ph type="{kind}"/></p:nvPr></p:nvSpPr>'
            return f"<p:sp>{place}<p:txBody>{paragraphs}</p:txBody></p:sp>"

        shapes = shape("title", (title,)) + shape("body", lines) + shape("sldNum", ("7",))
        return f"<p:sld {P} {A}><p:cSld><p:spTree>{shapes}</p:spTree></p:cSld></p:sld>"

    order = '<p:sldId r:id="r2"/><p:sldId r:id="r1"/>'
    related = "".join(
        f'<Relationship Id="r{n}" Type="{RELATION}/slide" Target="slides/slide{n}.xml"/>' for n in (1, 2)
    )
    members = {
        "ppt/presentation.xml": f"<p:presentation {P} {R}><p:sldIdLst>{order}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": f"<Relationships>{related}</Relationships>",
        "ppt/slides/slide1.xml": slide("结尾", "完"),
        "ppt/slides/slide2.xml": slide("Beginning", "one", "two"),
    }
    rows, _ = _read(_zipped(tmp_path / "a.pptx", members))
    assert rows == [("Beginning", "# Beginning\n\n- one\n- two\n\n# 结尾\n\n完\n")]


def test_spreadsheets_give_rows_by_the_names_above_them(tmp_path: Path) -> None:
    def cell(place: str, text: str) -> str:
        return f'<c r="{place}" t="inlineStr"><is><t>{text}</t></is></c>'

    rows = (
        f"<row>{cell('A1', 'All about fruit')}</row>"
        f'<row><c r="A2" t="s"><v>0</v></c>{cell("C2", "text")}</row>'
        f"<row>{cell('A3', '苹果')}{cell('B3', 'unnamed')}{cell('C3', '红的')}</row>"
        f'<row>{cell("A4", "pear")}<c r="C4"><v>5</v></c></row>'
    )
    members = {
        "xl/workbook.xml": f'<workbook {R}><sheets><sheet r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships><Relationship Id="r1" Type="{RELATION}/worksheet"'
        ' Target="/xl/worksheets/s.xml"/></Relationships>',
        "xl/worksheets/s.xml": f"<worksheet><sheetData>{rows}</sheetData></worksheet>",
        "xl/sharedStrings.xml": "<sst><si><r><t>ti</t></r><r><t>tle</t></r></si></sst>",
    }
    assert _read(_zipped(tmp_path / "a.xlsx", members))[0] == [("苹果", "红的"), ("pear", "5")]


def test_books_have_a_document_per_chapter(tmp_path: Path) -> None:
    chapters = {
        "one": "<h1>One</h1><p>It <i>be</i>gan.</p>",
        "two": "<h2>二</h2><p>结束了。</p>",
        "toc": "<ol><li>One</li></ol>",
    }
    nav = ' properties="nav"'
    items = "".join(
        f'<item id="{n}" href="text/{n}%20x.xhtml" media-type="application/xhtml+xml"'
        f"{nav if n == 'toc' else ''}/>"
        for n in chapters
    )
    order = "".join(f'<itemref idref="{name}"/>' for name in ("toc", "one", "two"))
    members = {
        "META-INF/container.xml": '<c><rootfile full-path="OEBPS/c.opf"/></c>',
        "OEBPS/c.opf": '<package xmlns:dc="urn:dc"><metadata><dc:title>Tale</dc:title></metadata>'
        f"<manifest>{items}</manifest><spine>{order}</spine></package>",
    }
    for name, text in chapters.items():
        page = f'<?xml version="1.0" encoding="utf-8"?><html><body>{text}</body></html>'
        members[f"OEBPS/text/{name} x.xhtml"] = page
    assert _read(_zipped(tmp_path / "a.epub", members))[0] == [
        ("Tale: One", "# One\n\nIt began.\n"),
        ("Tale: 二", "## 二\n\n结束了。\n"),
    ]


def test_notebooks(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Sums\n", "\n", "Adding."]},
        {
            "cell_type": "code",
            "source": "print(1 + 1)",
            "outputs": [
                {"output_type": "stream", "text": ["2\n"]},
                {"output_type": "display_data", "data": {"image/png": "aWJt"}},
                {"output_type": "error", "traceback": ["boom"]},
            ],
        },
        {"cell_type": "code", "source": "", "outputs": []},
    ]
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": cells, "nbformat": 4, "metadata": {}}), encoding="utf-8")
    expected = "# Sums\n\nAdding.\n\n```python\nprint(1 + 1)\n```\n\n```\n2\n```\n"
    assert _read(path)[0] == [("Sums", expected)]


@pytest.mark.parametrize("as_html", [True, False])
def test_letters(tmp_path: Path, as_html: bool) -> None:
    letter = EmailMessage()
    letter["Subject"], letter["From"] = "Grüße 你好", "someone@example.org"
    letter.set_content(
        "<p>Dear <b>all</b>,</p><p>tea is ready.</p>" if as_html else "Dear all,\n\ntea is ready.\n"
    )
    if as_html:
        letter.replace_header("Content-Type", "text/html; charset=utf-8")
    letter.add_attachment(b"\x00\x01", maintype="image", subtype="png", filename="a.png")
    (tmp_path / "a.eml").write_bytes(bytes(letter))
    assert _read(tmp_path / "a.eml")[0] == [("Grüße 你好", "Dear all,\n\ntea is ready.\n")]


def test_rich_text(tmp_path: Path) -> None:
    path = tmp_path / "a.rtf"
    path.write_bytes(
        rb"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0 Arial;}}{\*\generator X;}\f0 Caf\'e9 \{x\}\par "
        rb"\u33590?\u-10179 ?\u-8704 ?\tab b{\pict 0102}\par}"
    )
    assert _read(path)[0] == [("a", "Café {x}\n\n茶\U0001f600\tb\n")]
    path.write_bytes(rb"{\rtf1\ansi\ansicpg936 \'b2\'e8\par}")
    assert _read(path)[0] == [("a", "茶\n")]


PAGE = """<html><head><title> How to
 brew </title><style>p {{}}</style></head><body><nav><a href="/">Home</a> <a href="/x">Login</a></nav>
<article><h1>How to brew</h1><p>Good tea wants <em>time</em> and <b>fresh</b> water, and above all a warm pot
that has been rinsed before the leaves go in, as everybody knows who ever made it. <code>pour()</code> it.</p>
<ul><li>Warm the pot.</li><li>Add leaves.<ol><li>one spoon</li><li>one more</li></ol></li></ul>
<pre class="language-python"><code>for leaf in pot:
    steep(leaf)</code></pre>
<table><tr><th>Tea</th><th>Minutes</th></tr><tr><td>green</td><td>2</td></tr></table>
<blockquote><p>泡茶要慢，水要新，壶要热，人要静，这样才能泡出好茶来。</p></blockquote></article>
<footer>All rights reserved</footer><script>track()</script></body></html>"""


def test_web_pages_give_their_main_content(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text(PAGE, encoding="utf-8")
    ((title, text),) = _read(path)[0]
    assert title == "How to brew"
    for part in (
        "# How to brew\n",
        "Good tea wants time and fresh water, and above all a warm pot that has been",
        "`pour()` it.",
        "- Warm the pot.\n- Add leaves.\n  1. one spoon\n  2. one more",
        "```python\nfor leaf in pot:\n    steep(leaf)\n```",
        "| Tea | Minutes |\n| --- | --- |\n| green | 2 |",
        "> 泡茶要慢，水要新，壶要热，人要静，这样才能泡出好茶来。",
    ):
        assert part in text
    assert not any(word in text for word in ("Login", "track", "rights reserved"))


@pytest.mark.parametrize("encoding", ["gb18030", "cp1252", "utf-8", "utf-16"])
def test_pages_in_the_encoding_that_they_declare(tmp_path: Path, encoding: str) -> None:
    text = "泡茶要慢，水要新。" if encoding != "cp1252" else "Über Äpfel."
    declared = {"gb18030": "gb2312", "cp1252": "ISO-8859-1"}.get(encoding, encoding)
    page = f'<html><head><meta charset="{declared}"></head><body><p>{text}</p></body></html>'
    path = tmp_path / "a.html"
    path.write_bytes(page.encode(encoding))
    assert _read(path)[0] == [("a", f"{text}\n")]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    path = tmp_path / "a.html"
    path.write_text(PAGE, encoding="utf-8")
    rows, notes = _read(path)
    assert not rows
    assert [reject.reason for reject in notes.rejects] == ["missing_package"]
    assert "needs the package trafilatura" in notes.rejects[0].detail
