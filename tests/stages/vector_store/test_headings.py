"""Headings in Markdown, reStructuredText and docstrings."""

from __future__ import annotations

import pytest

from stages.vector_store.headings import split_sections


def paths(text: str) -> list[tuple[str, ...]]:
    sections = split_sections(text)
    assert "".join(text[s.start : s.end] for s in sections) == text
    return [section.heading_path for section in sections]


def test_markdown() -> None:
    text = "intro\n# A\nx\n## B ##\ny\n### C\n## D\nz\n# E"
    assert paths(text) == [(), ("A",), ("A", "B"), ("A", "B", "C"), ("A", "D"), ("E",)]


def test_underlined_titles() -> None:
    text = "Lamp\n====\n\nSays.\n\nParameters\n----------\nx\n\nReturns\n-------\ny\n"
    assert paths(text) == [("Lamp",), ("Lamp", "Parameters"), ("Lamp", "Returns")]


def test_titles_between_rules() -> None:
    assert paths("====\nLamp\n====\n\ntext\n") == [(), ("Lamp",)]


def test_fenced_code_has_no_headings() -> None:
    text = "# A\n```python\n# no heading\n```\n~~~\n## neither\n~~~\n## B\n"
    assert paths(text) == [("A",), ("A", "B")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain text\nover two lines",
        "#hashtag",
        "    # indented code",
        "a sentence that goes on\nand on\n---\nafter a rule",
        "col  col\n===  ===\n1    2",
        "\n---\n",
        "x" * 130 + "\n" + "=" * 130,
    ],
)
def test_what_is_no_heading(text: str) -> None:
    assert paths(text) == [()]


def test_a_heading_and_a_rule_below_it_are_one() -> None:
    assert paths("# A\n---\ntext") == [("A",)]


def test_other_line_ends_keep_offsets() -> None:
    assert paths("# A\r\nx\r\n## B\r\ny\x0cz\u2028w") == [("A",), ("A", "B")]
