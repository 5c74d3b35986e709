"""HTML elements as Markdown: headings, lists, code, tables and quotes stay what they are; layout goes.

Emphasis and addresses of links are left out: they are noise for a language model and would break words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

DROPPED = frozenset(
    [
        "script",
        "style",
        "head",
        "template",
        "noscript",
        "svg",
        "math",
        "iframe",
        "object",
        "button",
        "select",
        "input",
        "textarea",
        "nav",
        "form",
        "figure-caption",
        "audio",
        "video",
        "canvas",
        "map",
    ]
)
BLOCKS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "center",
        "dd",
        "details",
        "dir",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "graphic",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "html",
        "li",
        "main",
        "menu",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
        "ul",
    ]
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_SPACES = re.compile(r"[ \t\r\n\f]+")
MAX_DEPTH = 150
MAX_TABLE_COLUMNS = 30


def markdown_of(element: Any) -> str:
    """Markdown of an lxml element of HTML; "" where it holds no text. Ends without a line end."""
    return "\n\n".join(_blocks(element, 0)).strip("\n")


#: Private characters, which no text has: before the language of code, and before the number of an item.
_LANGUAGE_MARK, _NUMBER_MARK = "\ue000", "\ue001"


def with_marks(tree: Any) -> Any:
    """The tree (changed in place) with what trafilatura forgets written into its text.

    It makes a block of code in a line and a quotation of a block without <code>, and forgets the language of
    blocks and that a list is numbered.
    """
    for element in tree.iter("code", "kbd", "samp", "tt"):
        inside_block = any(_tag(parent) == "pre" for parent in element.iterancestors())
        text = "".join(element.itertext())
        if not inside_block and text.strip() and "`" not in text:
            for inner in list(element):
                element.remove(inner)
            element.text, element.tag = f"`{text.strip()}`", "span"
    for element in tree.iter("pre"):
        code = element.makeelement("code")
        code.text = f"{_LANGUAGE_MARK}{_language(element)}\n{_code_text(element)}"
        for inner in list(element):
            element.remove(inner)
        element.text = None
        element.append(code)
    for element in tree.iter("ol"):
        for number, item in enumerate((e for e in element if _tag(e) == "li"), start=_start(element)):
            item.text = f"{_NUMBER_MARK}{number}. {item.text or ''}"
    return tree


def _start(element: Any) -> int:
    start = element.get("start") or "1"
    return int(start) if start.isdigit() else 1


def table_markdown(rows: list[list[str]]) -> str:
    """A Markdown table, its first row as the header; a table of one column is its lines."""
    rows = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    rows = [row for row in rows if any(row)]
    width = max(map(len, rows), default=0)
    full = [row + [""] * (width - len(row)) for row in rows]
    used = [column for column in range(width) if any(row[column] for row in full)]
    full = [[row[column] for column in used] for row in full]
    if len(used) < 2 or len(full) < 2:
        return "\n".join(" ".join(filter(None, row)) for row in full)
    lines = [f"| {' | '.join(row)} |" for row in full]
    return "\n".join([lines[0], f"|{' --- |' * len(used)}", *lines[1:]])


def _tag(element: Any) -> str:
    """Lower case, without namespace; "" for comments and processing instructions."""
    return element.tag.rpartition("}")[2].lower() if isinstance(element.tag, str) else ""


def _blocks(element: Any, depth: int) -> Iterator[str]:
    """The blocks inside an element: runs of inline content, and what each block element gives."""
    if depth > MAX_DEPTH:  # nobody nests so deeply on purpose; the text is kept
        yield from filter(None, [_collapsed("".join(element.itertext()))])
        return
    run: list[str] = [element.text or ""]
    for child in element:
        tag = _tag(child)
        if tag and tag not in DROPPED:
            if tag in BLOCKS or (tag not in _INLINE and _holds_block(child)):
                yield from _flushed(run)
                yield from _block(tag, child, depth + 1)
            else:
                run.append(_inline(child, depth + 1))
        run.append(child.tail or "")
    yield from _flushed(run)


_INLINE = frozenset(["code", "kbd", "samp", "tt", "br", "sup", "sub", "q"])


def _holds_block(element: Any) -> bool:
    return any(_tag(child) in BLOCKS for child in element.iter() if child is not element)


def _flushed(run: list[str]) -> Iterator[str]:
    text = _collapsed("".join(run))
    run.clear()
    if text:
        yield text


def _collapsed(text: str) -> str:
    """White space as a browser shows it; \\v stands for a line break that was asked for."""
    lines = [_SPACES.sub(" ", line).strip(" ") for line in text.split("\v")]
    return "\n".join(lines).strip("\n")


def _inline(element: Any, depth: int) -> str:
    tag = _tag(element)
    if tag == "br":
        return "\v"
    inner = (element.text or "") + "".join(
        ("" if not _tag(c) or _tag(c) in DROPPED or depth > MAX_DEPTH else _inline(c, depth + 1))
        + (c.tail or "")
        for c in element
    )
    if tag in ("code", "kbd", "samp", "tt") and inner.strip() and "`" not in inner:
        return f"`{inner.strip()}`"
    return f'"{inner}"' if tag == "q" else inner


def _block(tag: str, element: Any, depth: int) -> Iterator[str]:
    if tag in _HEADINGS:
        text = _collapsed(_inline(element, depth)).replace("\n", " ").replace("`", "")
        yield from filter(None, [text and f"{'#' * _HEADINGS[tag]} {text}"])
    else:
        yield from filter(None, _MAKERS.get(tag, _blocks)(element, depth))


def _code_text(element: Any) -> str:
    for line_break in [c for c in element.iter() if _tag(c) == "br"]:
        line_break.tail = "\n" + (line_break.tail or "")
    return "".join(element.itertext()).replace("\r\n", "\n").strip("\n").expandtabs(4)


def _code(element: Any, _depth: int) -> Iterator[str]:
    text = _code_text(element)
    language = _language(element)
    if text.lstrip().startswith(_LANGUAGE_MARK):
        language, _, text = text.lstrip()[1:].partition("\n")
    if text.strip():
        text = text.strip("\n").rstrip()
        yield f"```{language}\n{text}\n```"


def _language(element: Any) -> str:
    """`python` of class="language-python" or "highlight-python", at the element or at its code."""
    holders = [element, *[c for c in element if _tag(c) == "code"], element.getparent()]
    for holder in holders:
        named = "" if holder is None else holder.get("class") or ""
        if match := re.search(r"(?:language|lang|highlight|brush:)[-_ ]?([a-z0-9+#]{1,12})\b", named.lower()):
            return match[1] if match[1] not in ("default", "text", "none") else ""
    return ""


def _quote(element: Any, depth: int) -> Iterator[str]:
    text = "\n\n".join(_blocks(element, depth))
    if text:
        yield "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def _list(element: Any, depth: int) -> Iterator[str]:
    items = []
    number = _start(element)
    for child in element:
        mark = f"{number}. " if _tag(element) == "ol" else "- "
        inner = list(_blocks(child, depth)) if _tag(child) and _tag(child) not in DROPPED else []
        if not inner:
            continue
        if _tag(child) in ("ul", "ol"):  # a list in a list without an item of its own
            items.append("\n".join(f"  {line}" for line in "\n".join(_list(child, depth)).split("\n")))
            continue
        number += 1
        text = "\n".join(inner)
        if text.startswith(_NUMBER_MARK):
            mark, _, text = text[1:].partition(" ")
            mark += " "
        items.append(mark + text.replace("\n", "\n" + " " * len(mark)))
    if items:
        yield "\n".join(items)


def _table(element: Any, depth: int) -> Iterator[str]:
    """A table of data as one; a table that lays out a page, or holds others, as what is in its cells."""
    rows = list(_own_rows(element))
    cells = [[cell for cell in row if _tag(cell) in ("td", "th")] for row in rows]
    nested = any(_tag(inner) == "table" for inner in element.iter() if inner is not element)
    texts = [] if nested else [[_collapsed("".join(_blocks_text(c, depth))) for c in row] for row in cells]
    longest = max((len(text) for row in texts for text in row), default=0)
    if nested or longest > 600 or max(map(len, texts), default=0) > MAX_TABLE_COLUMNS:
        for row in cells:
            for cell in row:
                yield from _blocks(cell, depth)
        return
    caption = [_collapsed(_inline(c, depth)) for c in element if _tag(c) == "caption"]
    yield from filter(None, [*caption, table_markdown(texts)])


def _own_rows(element: Any) -> Iterator[Any]:
    """Rows of a table, and not those of tables in its cells."""
    for child in element:
        if _tag(child) == "tr":
            yield child
        elif _tag(child) in ("thead", "tbody", "tfoot"):
            yield from _own_rows(child)


def _blocks_text(element: Any, depth: int) -> str:
    return " ".join(_blocks(element, depth))


def _definition(element: Any, depth: int) -> Iterator[str]:
    text = "\n\n".join(_blocks(element, depth))
    if text:
        yield "    " + text.replace("\n", "\n    ").replace("\n    \n", "\n\n")


_MAKERS: dict[str, Callable[[Any, int], Iterator[str]]] = {
    "pre": _code,
    "blockquote": _quote,
    "ul": _list,
    "ol": _list,
    "menu": _list,
    "dir": _list,
    "table": _table,
    "dd": _definition,
}
