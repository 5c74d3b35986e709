"""The walk-through in the white box's README, in both languages: its code runs, its numbers are right.

`python tests/whitebox/test_walkthrough.py` writes the outputs anew, for who changed the code on purpose.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from stages.whitebox.model import INITIAL_STD

FOLDER = Path(__file__).resolve().parents[2] / "stages" / "whitebox"
READMES = ("README.md", "README.zh.md")
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
IN_PROSE = re.compile(r"(?<![\w.])-?\d+\.\d+(?![\w.])")
LAST_PLACE = 1.5
"""A printed number may differ by so many units of its last digit: other machines add in another order."""
HEADINGS = 12


def blocks(text: str) -> list[tuple[str, str]]:
    """Code and the output that the page states for it."""
    return [(code, output or "") for code, output in BLOCK.findall(text)]


def outputs(codes: list[str]) -> list[str]:
    """What each block prints, run one after the other in one namespace."""
    names: dict[str, Any] = {}
    printed = []
    for code in codes:
        screen = io.StringIO()
        with contextlib.redirect_stdout(screen):
            exec(compile(code, "walk-through", "exec"), names)
        printed.append("\n".join(line.rstrip() for line in screen.getvalue().splitlines()) + "\n")
    return printed


def differences(stated: str, found: str) -> list[str]:
    """Lines whose words differ, or whose numbers do by more than their last digit allows."""
    wrong = []
    if len(stated.splitlines()) != len(found.splitlines()):
        return [f"{len(stated.splitlines())} lines stated, {len(found.splitlines())} printed"]
    for expected, line in zip(stated.splitlines(), found.splitlines(), strict=True):
        numbers = list(zip(NUMBER.findall(expected), NUMBER.findall(line), strict=False))
        same_words = " ".join(NUMBER.sub("#", expected).split()) == " ".join(NUMBER.sub("#", line).split())
        if not same_words or any(abs(float(a) - float(b)) > _tolerance(a) for a, b in numbers):
            wrong.append(f"stated: {expected}\nfound:  {line}")
    return wrong


def _tolerance(number: str) -> float:
    decimals = len(number.partition(".")[2])
    return LAST_PLACE * 10.0**-decimals if decimals else 0.0


@pytest.fixture(scope="module")
def printed() -> list[str]:
    return outputs([code for code, _ in blocks((FOLDER / "README.md").read_text(encoding="utf-8"))])


@pytest.mark.parametrize("name", READMES)
def test_every_output_is_what_the_code_prints(name: str, printed: list[str]) -> None:
    stated = [output for _, output in blocks((FOLDER / name).read_text(encoding="utf-8"))]
    assert len(stated) == len(printed) == HEADINGS
    assert [wrong for pair in zip(stated, printed, strict=True) for wrong in differences(*pair)] == []


def test_both_languages_have_the_same_code() -> None:
    english, chinese = (blocks((FOLDER / name).read_text(encoding="utf-8")) for name in READMES)
    assert [code for code, _ in english] == [code for code, _ in chinese]


@pytest.mark.parametrize("name", READMES)
def test_every_number_in_the_text_between_is_one_that_the_code_states_or_prints(
    name: str, printed: list[str]
) -> None:
    page = (FOLDER / name).read_text(encoding="utf-8")
    walk = page[page.index("\n### 0.") :]
    texts = (*printed, *(code for code, _ in blocks(walk)), str(INITIAL_STD))
    shown = {float(number) for text in texts for number in NUMBER.findall(text)}
    prose = BLOCK.sub("", walk)
    assert IN_PROSE.findall(prose)
    assert [number for number in IN_PROSE.findall(prose) if float(number) not in shown] == []


def test_a_wrong_number_or_word_is_noticed() -> None:
    assert differences("x [1, 6]\n  0.123 -0.500\n", "x [1, 6]\n  0.124 -0.501\n") == []
    assert differences("x [1, 6]\n", "x [1, 7]\n")
    assert differences("  0.123\n", "  0.126\n")
    assert differences("equal: True\n", "equal: False\n")
    assert differences("one\n", "one\ntwo\n")


def rewrite(path: Path) -> None:
    """Puts what the code prints under each block."""
    text = path.read_text(encoding="utf-8")
    printed = iter(outputs([code for code, _ in blocks(text)]))
    path.write_text(
        BLOCK.sub(lambda m: f"```python\n{m.group(1)}```\n\n```text\n{next(printed)}```\n", text),
        encoding="utf-8",
    )


if __name__ == "__main__":
    for readme in READMES:
        rewrite(FOLDER / readme)
