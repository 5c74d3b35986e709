"""Docstrings that open with their own signature, as C code, stubs and older Python write them."""

from __future__ import annotations

import inspect
import re

MAX_OPENING = 200
_FORM = re.compile(r"\w+\([^)]*\)(\s*-+>.*)?\Z")


def split_signature(name: str, docstring: str) -> tuple[str, str]:
    """(signature, rest) of a docstring that opens with its own signature, as C code and stubs write it."""
    text = inspect.cleandoc(docstring)
    opening, parenthesis, _ = text[:MAX_OPENING].partition("(")
    if not parenthesis or opening.rpartition(".")[2] != name or " " in opening:
        return "", text
    text = text[len(opening) - len(name) :]
    end = _closing_parenthesis(text)
    returns = re.match(r"\s*-{1,2}>\s*[^\n]*", text[end + 1 :])
    stop = end + 1 + (returns.end() if returns else 0)
    following = text[stop:]
    if following.strip() and not following.startswith("\n"):
        return "", inspect.cleandoc(docstring)  # a sentence that happens to begin with a call
    signature = " ".join(text[:stop].split()).replace("-->", "->")
    signature = re.sub(r"\(\$?self(?:, /)?(?:, )?", "(", signature)
    signature = re.sub(r"\$\w+(?:, )?", "", signature)
    rest = re.sub(r"\A\s*--\s*\n", "", following.lstrip("\n") if following else "")
    rest = _further_signatures(name, rest)
    return signature, inspect.cleandoc(rest)


def _closing_parenthesis(text: str) -> int:
    """Where the first parenthesis closes, or the last position of the text."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == ")" and depth == 0:
            return position
    return len(text) - 1


def _further_signatures(name: str, text: str) -> str:
    """Without more one-line forms of the same call: `range(start, stop[, step])` after `range(stop)`."""
    lines = text.strip("\n").split("\n")
    forms = [line.strip().startswith(f"{name}(") and bool(_FORM.match(line.strip())) for line in lines]
    count = forms.index(False) if False in forms else len(lines)
    ends_there = count < len(lines) and not lines[count].strip()
    return "\n".join(lines[count:] if ends_there else lines)
