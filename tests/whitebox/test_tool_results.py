"""The tools' answers: exact values, exact wording, and refusal of everything that is no arithmetic."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from stages.whitebox.tool_results import (
    calculate,
    first_sentence,
    format_number,
    lookup_result,
    search_result,
    short_sentence,
    short_signature,
)

DEDENT = """# textwrap.dedent

```python
dedent(text)
```

Remove any common leading whitespace from every line in `text`.

This can be used to make triple-quoted strings line up.
"""


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("12*(3+4)", "84"),
        ("7/7", "1"),
        ("1/3", "0.333333"),
        ("2**10", "1024"),
        ("-5 + 3", "-2"),
        ("0.1+0.2", "0.3"),
        ("17//5", "3"),
        ("17%5", "2"),
        ("2.50*4", "10"),
        ("123456.789+0", "123457"),
    ],
)
def test_values_follow_the_number_rule(expression: str, expected: str) -> None:
    assert calculate(expression) == expected


def test_random_integer_expressions_agree_with_exact_fractions() -> None:
    rng = random.Random(3)
    for _ in range(300):
        a, b, c = (rng.randint(1, 99) for _ in range(3))
        exact = Fraction(a) * (Fraction(b) - c) + a
        assert calculate(f"{a}*({b}-{c})+{a}") == str(int(exact))


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("1/0", "division by zero"),
        ("9**9**9", "limited"),
        ("__import__('os')", "only numbers"),
        ("True+1", "only numbers"),
        ("'a'*9", "only numbers"),
        ("2 +", "no arithmetic"),
        ("", "no arithmetic"),
        ("(-8)**0.5", "not a real"),
        ("1e308*10", "too large"),
        ("1+" * 40 + "1", "nested"),
        ("1" * 97, "longer"),
    ],
)
def test_everything_else_is_refused_with_a_reason(expression: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        calculate(expression)


def test_large_results_are_refused_and_do_not_take_long() -> None:
    with pytest.raises(ValueError, match="too large"):
        calculate("(2**63)**9")


@pytest.mark.parametrize(("value", "text"), [(3, "3"), (3.0, "3"), (2.5, "2.5"), (1e15, "1e+15")])
def test_format_number(value: float, text: str) -> None:
    assert format_number(value) == text


def test_lookup_and_search_results() -> None:
    assert lookup_result("textwrap.dedent", DEDENT) == (
        "dedent(text) — Remove any common leading whitespace from every line in text."
    )
    assert search_result("textwrap.dedent", DEDENT) == (
        "textwrap.dedent: Remove any common leading whitespace from every line in text."
    )


def test_documents_without_signature_or_prose() -> None:
    assert lookup_result("西湖", "西湖位于杭州。它很美。") == "西湖 — 西湖位于杭州。"
    assert (
        search_result("Anna Lund", "Anna Lund\n\nAnna Lund was a baker.")
        == "Anna Lund: Anna Lund was a baker."
    )
    assert lookup_result("x.y", "# x.y\n\n```python\ny(a)\n```\n") == "y(a)"
    assert search_result("x.y", "") == "x.y"


def test_long_signatures_lose_whole_parameters_only() -> None:
    parameters = "first: dict[str, int] = {}, second=(1, 2), third: list[tuple[int, ...]] = [], fourth=4"
    shortened = short_signature(f"# a.b\n\n```python\nb({parameters})\n```\n")
    assert shortened == "b(first: dict[str, int] = {}, second=(1, 2), ...)"


def test_a_short_signature_keeps_its_result_and_loses_def_and_class() -> None:
    assert short_signature("# a.f\n\n```python\ndef f(x) -> int\n```\n") == "f(x) -> int"
    assert short_signature("# a.C\n\n```python\nclass C(x=1)\n```\n") == "C(x=1)"
    assert short_signature("Just text (with parentheses).") == ""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Return e.g. a list. More.", "Return e.g. a list."),
        ("Use :func:`~os.path.join` and ``x``.", "Use join and x."),
        ("# Title\n\n.. note:: skip\n\nReal prose here! And more", "Real prose here!"),
        ("Heading\n=======\n\nBody text.", "Body text."),
        (">>> code\n\nAfter code.", "After code."),
        ("See [the docs](http://x.y) **now**.", "See the docs now."),
        ("Version 3. 11 is out. Next.", "Version 3. 11 is out."),
        ("", ""),
    ],
)
def test_first_sentence(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


def test_long_sentences_are_cut_at_a_word() -> None:
    cut = short_sentence("word " * 30 + "end.")
    assert cut == "word " * 24 + "..."
    assert len(short_sentence("字" * 400)) <= 164
