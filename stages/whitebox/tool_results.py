"""What the assistant's three tools answer: one wording for training conversations and for the running agent.

A model that learned on one wording and meets another has learned the wrong thing, so corpus_prep (which
writes conversations with tools) and agent_smoke (which runs the tools) share these functions:

    calculate("12*(3+4)")            -> "84"
    lookup_result(title, text)       -> "dedent(text) — Remove any common leading whitespace ..."
    search_result(title, text)       -> "textwrap.dedent: Remove any common leading whitespace ..."

`title` and `text` are the columns of a document. Nothing is ever evaluated or imported: arithmetic is parsed.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable

MAX_EXPRESSION_CHARACTERS = 96
MAX_DEPTH = 12
MAX_BITS = 512
MAX_EXPONENT = 64
MAX_SIGNATURE_CHARACTERS = 60
MAX_SEARCHED_CHARACTERS = 8000
MAX_SENTENCE_WORDS = 24
MAX_SENTENCE_CHARACTERS = 160

ERROR = "error: "
"""What every result begins with that is no answer, so that the model can tell."""

Number = int | float

_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def calculator_result(expression: str) -> str:
    """What the calculator answers: the expression's value, or "error: " and why there is none."""
    try:
        return calculate(expression)
    except ValueError as error:
        return ERROR + str(error)


def calculate(expression: str) -> str:
    """Value of an arithmetic expression as `format_number` writes it.

    Numbers, + - * / // % **, signs and parentheses. Raises ValueError with a short reason for anything else,
    for a division by zero and for results beyond 512 bits.
    """
    if len(expression) > MAX_EXPRESSION_CHARACTERS:
        raise ValueError(f"expression is longer than {MAX_EXPRESSION_CHARACTERS} characters")
    try:
        with warnings.catch_warnings(action="ignore"):  # Python wonders at "2if", a model may write that
            tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("no arithmetic expression") from None
    try:
        return format_number(_value(tree.body, MAX_DEPTH))
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except OverflowError:
        raise ValueError("result is too large") from None


def _value(node: ast.expr, depth: int) -> Number:
    if depth == 0:
        raise ValueError("expression is nested too deeply")
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = _value(node.operand, depth - 1)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, depth - 1), _value(node.right, depth - 1)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _BINARY:
            return _bounded(_BINARY[type(node.op)](left, right))
    raise ValueError("only numbers, + - * / // % ** and parentheses are allowed")


def _power(base: Number, exponent: Number) -> Number:
    if abs(exponent) > MAX_EXPONENT or (isinstance(base, int) and base.bit_length() > MAX_EXPONENT):
        raise ValueError(f"powers are limited to exponents of {MAX_EXPONENT}")
    result = base**exponent
    if isinstance(result, complex):
        raise ValueError("result is not a real number")
    return _bounded(result)


def _bounded(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ValueError("result is too large")
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise ValueError("result is too large")
    return value


def format_number(value: Number) -> str:
    """An integral value without a point, any other with up to six significant digits."""
    if isinstance(value, int):
        return str(value)
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.6g}"


def lookup_result(title: str, text: str) -> str:
    """What `lookup` answers for the document with this title: `SIGNATURE — FIRST SENTENCE`."""
    return join_lookup(title, short_signature(text), short_sentence(without_title(title, text)))


def search_result(title: str, text: str) -> str:
    """What `search` answers for its best hit: `TITLE: FIRST SENTENCE`."""
    return join_search(title, short_sentence(without_title(title, text)))


def join_lookup(title: str, signature: str, sentence: str) -> str:
    """`lookup_result` of parts that are known already; without a signature the title stands for it."""
    return f"{signature or title} — {sentence}" if sentence else signature or title


def join_search(title: str, sentence: str) -> str:
    """`search_result` of parts that are known already."""
    return f"{title}: {sentence}" if sentence else title


def title_of_search(result: str) -> str:
    """The title in a search result as `join_search` writes it, with a sentence or without one."""
    return result.partition(": ")[0]


def without_title(title: str, text: str) -> str:
    """The text without a first line that only repeats the title, as encyclopedias write it."""
    head, _, rest = text.lstrip().partition("\n")
    return rest if title and head.strip() == title else text


_FENCE = re.compile(r"\A(?:#[^\n]*\n\s*)?```[a-z]*\n(.*?)\n```", re.DOTALL)
_DEFINITION = re.compile(r"\A(?:async )?(?:class |def )?(\w[\w.]*)\s*(\(.*)?\Z", re.DOTALL)


def short_signature(text: str) -> str:
    """The signature in the code block under the document's heading, or "" where it has none.

    One line of at most 60 characters: whole parameters are left out from the end, `...` stands for them.
    """
    block = _FENCE.match(text)
    definition = _DEFINITION.match(" ".join(block.group(1).split())) if block else None
    if definition is None:
        return ""
    name, rest = definition.group(1), definition.group(2)
    parameters, returns = _split_parameters(rest or "")
    return _fit(name, parameters, returns) if rest else name


def _split_parameters(rest: str) -> tuple[list[str], str]:
    """Top-level parameters of `(a, b=(1, 2)) -> int`, and what follows the closing parenthesis."""
    parts, current, depth = [], "", 0
    for position, character in enumerate(rest):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return [part for part in [*parts, current.strip()] if part], rest[position + 1 :].strip()
        if character == "," and depth == 1:
            parts.append(current.strip())
            current = ""
        elif depth > 1 or character != "(":
            current += character
    return [part for part in [*parts, current.strip()] if part], ""


def _fit(name: str, parameters: list[str], returns: str) -> str:
    whole = f"{name}({', '.join(parameters)})"
    if len(whole) <= MAX_SIGNATURE_CHARACTERS:
        with_result = f"{whole} {returns}".strip()
        return with_result if len(with_result) <= MAX_SIGNATURE_CHARACTERS else whole
    kept = list(parameters)
    while kept and len(f"{name}({', '.join(kept)}, ...)") > MAX_SIGNATURE_CHARACTERS:
        kept.pop()
    return f"{name}({', '.join([*kept, '...'])})"


def short_sentence(text: str) -> str:
    """First sentence of the document's prose, without markup: at most 24 words and 160 characters."""
    sentence = first_sentence(text)
    words = sentence.split(" ")
    cut = " ".join(words[:MAX_SENTENCE_WORDS])
    if len(cut) > MAX_SENTENCE_CHARACTERS:
        head = cut[:MAX_SENTENCE_CHARACTERS]
        cut = head.rpartition(" ")[0] or head
    return cut if cut == sentence else cut.rstrip(" ,;:.") + " ..."


_ABBREVIATIONS = (
    "e.g.",
    "i.e.",
    "etc.",
    "cf.",
    "vs.",
    "Dr.",
    "Mr.",
    "Mrs.",
    "No.",
    "St.",
    "Sr.",
    "Jr.",
    "Inc.",
    "approx.",
)
_SENTENCE_END = re.compile(r"[.!?][)\"'”’]?(?=\s)|[。！？؟]")


def first_sentence(text: str) -> str:
    """First sentence of the first paragraph that is prose, on one line and without markup; "" without one.

    In the document of a symbol only what stands before its first section counts: the rest is about members.
    """
    text = text[:MAX_SEARCHED_CHARACTERS]
    own = text.split("\n## ", 1)[0] if _FENCE.match(text) else text
    paragraph = _plain(_first_prose(own))
    for end in _SENTENCE_END.finditer(paragraph):
        head = paragraph[: end.end()]
        # A number or an abbreviation before the full stop does not end a sentence.
        if not head.endswith(_ABBREVIATIONS) and not re.search(r"(?:^|\s)(?:\w|\d+)\.\Z", head):
            return head
    return paragraph


def _first_prose(text: str) -> str:
    for block in re.split(r"\n\s*\n", re.sub(r"```.*?(?:```|\Z)", "\n\n", text, flags=re.DOTALL)):
        lines = [line.strip() for line in block.strip().splitlines()]
        lines = [line for line in lines if not line.startswith("#")]
        if lines and _is_prose(lines):
            return " ".join(lines)
    return ""


_UNDERLINE = re.compile(r"[=\-~^*`\"']{3,}\Z")
_FIELD = re.compile(r":\w[\w ]*:|\.\. |>>> |[-*+•|] |\d+\. |<[!/a-zA-Z]|(?:!!!|\?\?\?|:::)|Bases: ")


_HEADER = re.compile(r"[A-Z][\w-]*:\s")


def _is_prose(lines: list[str]) -> bool:
    if len(lines) > 1 and sum(bool(_HEADER.match(line)) for line in lines) * 2 > len(lines):
        return False  # `Title: ...` and `Author: ...`, as in mails and PEPs
    if _FIELD.match(lines[0]) or any(_UNDERLINE.match(line) for line in lines[:3]):
        return False
    return any(character.isalpha() for character in lines[0]) and not lines[0].endswith("::")


_MARKUP = (
    (re.compile(r":[a-z][\w:+.-]*:`~?\.?(?:[^`<]*\.)?([^`.<]+?)(?:\s*<[^`]*>)?`"), r"\1"),
    (re.compile(r"`+~?([^`<]*?)(?:\s*<[^`]*>)?`+_{0,2}"), r"\1"),
    (re.compile(r"\[([^\]\[]+)\]\([^)\s]*\)"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<!\w)\*(\w[^*]*)\*(?!\w)"), r"\1"),
    (re.compile(r"\s*\([\s,;]*\)(?![\w.])"), ""),  # what is left of a note in another script
)


def _plain(text: str) -> str:
    """Without roles, backticks, links and emphasis of reStructuredText and Markdown; spaces are single."""
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())
