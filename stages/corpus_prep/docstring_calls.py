"""Docstrings that Python code adds to symbols of C extensions: torch's `add_docstr`, NumPy's `add_newdoc`.

The calls are read, not run: their arguments are strings, sums of strings, and strings with `.format(**names)`
or f-strings whose names are tables that the same file builds with `parse_kwargs` and `merge_dicts`.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DocstringCalls:
    """One added docstring: on `name` of `module`, or on its method `member`."""

    module: str
    name: str
    member: str
    docstring: str


def added_docstrings(tree: ast.Module, module: str) -> Iterator[DocstringCalls]:
    """Yield every docstring that the file's top level adds to something."""
    tables: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            target = node.targets[0].id
            if (table := _table(node.value, tables)) is not None:
                tables[target] = table
            elif _called(node.value).endswith("add_docstr") and isinstance(node.value, ast.Call):
                yield from _named(module, target, node.value.args[1:2], tables)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _from_call(node.value, tables)


def _called(node: ast.expr) -> str:
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _from_call(call: ast.Call, tables: Mapping[str, dict[str, str]]) -> Iterator[DocstringCalls]:
    name, arguments = _called(call), call.args
    if name.endswith("add_docstr") and len(arguments) == 2:
        owner, _, attribute = ast.unparse(arguments[0]).rpartition(".")
        if owner:
            yield from _named(owner, attribute, arguments[1:], tables)
    elif name == "add_docstr_all" and len(arguments) == 2:
        text = _text(arguments[1], tables)
        if (method := _text(arguments[0], tables)) and text:
            yield DocstringCalls("torch", "Tensor", method, inspect.cleandoc(text))
    elif name == "add_newdoc" and len(arguments) == 3:
        yield from _newdoc(arguments, tables)


def _newdoc(arguments: list[ast.expr], tables: Mapping[str, dict[str, str]]) -> Iterator[DocstringCalls]:
    """`add_newdoc(module, name, doc)`, or with `(member, doc)` as the third argument."""
    module, name = (_text(argument, tables) for argument in arguments[:2])
    member, document = "", arguments[2]
    if isinstance(document, ast.Tuple) and len(document.elts) == 2:
        member, document = _text(document.elts[0], tables) or "", document.elts[1]
    if module and name and (text := _text(document, tables)):
        yield DocstringCalls(module, name, member, inspect.cleandoc(text))


def _named(
    module: str, name: str, values: list[ast.expr], tables: Mapping[str, dict[str, str]]
) -> Iterator[DocstringCalls]:
    if values and (text := _text(values[0], tables)):
        yield DocstringCalls(module, name, "", inspect.cleandoc(text))


def _text(node: ast.expr, tables: Mapping[str, dict[str, str]]) -> str | None:
    """The string that the expression builds, or None where it is none of the known forms."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left, tables), _text(node.right, tables)
        return None if left is None or right is None else left + right
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, tables) or "" for part in node.values)
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Subscript):
        table, key = getattr(node.value.value, "id", ""), _text(node.value.slice, tables)
        return tables.get(table, {}).get(key or "")
    if _called(node) == "format" and isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        template = _text(node.func.value, tables)
        names: dict[str, str] = {}
        for keyword in node.keywords:
            names |= tables.get(getattr(keyword.value, "id", ""), {}) if keyword.arg is None else {}
        return None if template is None else _filled(template, names)
    return None


def _filled(template: str, names: Mapping[str, str]) -> str:
    """`str.format` with what is known; a line that needs an unknown name is left out."""
    lines = []
    for line in template.split("\n"):
        needed = re.findall(r"(?<!\{)\{(\w+)\}(?!\})", line)
        if all(name in names for name in needed):
            filled = re.sub(r"(?<!\{)\{(\w+)\}(?!\})", lambda match: names[match.group(1)], line)
            lines.append(filled.replace("{{", "{").replace("}}", "}"))
    return "\n".join(lines)


def _table(node: ast.expr, tables: Mapping[str, dict[str, str]]) -> dict[str, str] | None:
    """Name -> text, as `parse_kwargs("...")`, `merge_dicts(...)`, a dict or a name give it."""
    if isinstance(node, ast.Name):
        return tables.get(node.id)
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        texts = {
            str(key.value): _text(value, tables) for key, value in pairs if isinstance(key, ast.Constant)
        }
        return {name: text for name, text in texts.items() if text is not None} or None
    if _called(node) == "parse_kwargs" and isinstance(node, ast.Call) and node.args:
        return _described(_text(node.args[0], tables) or "")
    if _called(node) == "merge_dicts" and isinstance(node, ast.Call):
        merged: dict[str, str] = {}
        for argument in node.args:
            merged |= _table(argument, tables) or {}
        return merged
    return None


def _described(text: str) -> dict[str, str]:
    """`    input (Tensor): the input.` -> {"input": "input (Tensor): the input."}."""
    entries = [entry.strip() for entry in re.split(r"\n {4}(?!\s)", text)]
    return {entry.split(" ")[0]: entry for entry in entries if entry}
