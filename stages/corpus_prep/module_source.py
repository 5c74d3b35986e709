"""One Python file as the harvest sees it: docstrings, signatures, imports. Parsed, never imported."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

from stages.corpus_prep.docstring_calls import DocstringCalls, added_docstrings
from stages.corpus_prep.docstring_signature import split_signature
from stages.corpus_prep.harvest_files import SourceFile

MAX_DEFAULT_CHARACTERS = 40
MAX_PARAMETERS = 40

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Symbol:
    """A function, a class or a method. `signature` is `name(parameters)`, or the bare name of a property."""

    name: str
    kind: str
    signature: str
    docstring: str
    bases: tuple[str, ...] = ()
    methods: dict[str, Symbol] = field(default_factory=dict)

    @property
    def is_documented(self) -> bool:
        """Whether there is anything to say about it."""
        return bool(self.docstring) or any(method.docstring for method in self.methods.values())


@dataclass
class ModuleSource:
    """What one file defines and re-exports."""

    name: str
    docstring: str = ""
    is_package: bool = False
    symbols: dict[str, Symbol] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Local name -> (module, name there), for `from module import name`."""
    stars: list[str] = field(default_factory=list)
    all_names: frozenset[str] | None = None
    added: list[DocstringCalls] = field(default_factory=list)
    """Docstrings that this file adds to symbols elsewhere, as C extensions' Python halves do."""


def parse_module(file: SourceFile) -> ModuleSource | None:
    """Read one file; None where it is no valid Python of this version."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
            tree = ast.parse(file.path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return None
    module = ModuleSource(file.module, _docstring(tree), file.is_package)
    for node in _statements(tree.body):
        _collect(module, node)
    module.added = list(added_docstrings(tree, file.module))
    return module


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, also those under `if`, `try` and `with`; an `else` comes after its `if`."""
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)
        else:
            yield node


def _collect(module: ModuleSource, node: ast.stmt) -> None:
    if isinstance(node, Function):
        _keep(module.symbols, _function(node))
    elif isinstance(node, ast.ClassDef):
        _keep(module.symbols, _class(node))
    elif isinstance(node, ast.ImportFrom):
        _collect_import(module, node)
    elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            constants = (c.value for c in ast.walk(node.value) if isinstance(c, ast.Constant))
            if names := {value for value in constants if isinstance(value, str)}:
                module.all_names = (module.all_names or frozenset()) | names


def _keep(symbols: dict[str, Symbol], symbol: Symbol | None) -> None:
    """Of several definitions under one name (overloads, fallbacks) the first documented one counts."""
    if symbol is not None and not (symbol.name in symbols and symbols[symbol.name].is_documented):
        symbols[symbol.name] = symbol


def _collect_import(module: ModuleSource, node: ast.ImportFrom) -> None:
    origin = node.module or ""
    if node.level:
        package = module.name if module.is_package else module.name.rpartition(".")[0]
        parts = package.split(".")
        parts = parts[: len(parts) - node.level + 1]
        origin = ".".join([*parts, *([origin] if origin else [])])
    for alias in node.names:
        if alias.name == "*":
            module.stars.append(origin)
        else:
            module.imports[alias.asname or alias.name] = (origin, alias.name)


def _docstring(node: ast.Module | ast.ClassDef | Function) -> str:
    raw = ast.get_docstring(node, clean=False)
    return inspect.cleandoc(raw) if raw else ""


def _decorators(node: Function | ast.ClassDef) -> set[str]:
    names = set()
    for decorator in node.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        names.add(target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", ""))
    return names


def _function(node: Function, bound: bool = False) -> Symbol | None:
    """A function or, when `bound`, a method: its first parameter is left out of the signature."""
    decorators = _decorators(node)
    if "overload" in decorators or decorators & {"setter", "deleter"}:
        return None
    if bound and decorators & {"property", "cached_property", "memoized_property", "hybridproperty"}:
        return Symbol(node.name, "property", node.name, _docstring(node))
    skip_first = bound and "staticmethod" not in decorators
    signature = f"{node.name}({parameters(node.args, skip_first)})"
    if isinstance(node, ast.AsyncFunctionDef):
        signature = f"async {signature}"
    if node.returns is not None and len(returns := ast.unparse(node.returns)) <= MAX_DEFAULT_CHARACTERS:
        signature = f"{signature} -> {_unquoted(returns)}"
    return Symbol(node.name, "function", signature, _docstring(node))


def _class(node: ast.ClassDef) -> Symbol:
    bases = tuple(ast.unparse(base) for base in node.bases)
    symbol = Symbol(node.name, "class", f"class {node.name}", _docstring(node), bases)
    for item in _statements(node.body):
        if not isinstance(item, Function):
            continue
        if item.name == "__init__":
            symbol.signature = f"class {node.name}({parameters(item.args, skip_first=True)})"
        elif not item.name.startswith("_"):
            _keep(symbol.methods, _function(item, bound=True))
    if symbol.signature == f"class {node.name}":
        _sign_without_init(symbol, node)
    return symbol


def _sign_without_init(symbol: Symbol, node: ast.ClassDef) -> None:
    """Constructor parameters from the fields of a record, or from a docstring that opens with them."""
    if fields := _fields(node):
        symbol.signature = f"class {node.name}({', '.join(fields[:MAX_PARAMETERS])})"
        return
    signature, rest = split_signature(node.name, symbol.docstring)
    if signature and rest:
        symbol.signature, symbol.docstring = f"class {signature}", rest


def _fields(node: ast.ClassDef) -> list[str]:
    """Fields of a dataclass or of a pydantic model, which have no `__init__` of their own."""
    is_record = "dataclass" in _decorators(node) or any("BaseModel" in ast.unparse(b) for b in node.bases)
    if not is_record:
        return []
    items = [i for i in node.body if isinstance(i, ast.AnnAssign) and isinstance(i.target, ast.Name)]
    return [
        f"{i.target.id}: {_short(i.annotation)}" + (f" = {_short(i.value)}" if i.value else "")
        for i in items
        if isinstance(i.target, ast.Name)
    ]


def parameters(arguments: ast.arguments, skip_first: bool = False) -> str:
    """The parameter list as Python writes it; long defaults and annotations become `...`."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    defaults += arguments.defaults
    parts = [_parameter(a, d) for a, d in zip(positional, defaults, strict=True)]
    if arguments.posonlyargs:
        parts.insert(len(arguments.posonlyargs), "/")
    if skip_first and parts:
        parts = parts[2:] if parts[1:2] == ["/"] else parts[1:]
    if arguments.vararg:
        parts.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        parts.append("*")
    parts += [_parameter(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.kwarg:
        parts.append(f"**{arguments.kwarg.arg}")
    if len(parts) > MAX_PARAMETERS:
        parts = [*parts[:MAX_PARAMETERS], "..."]
    return ", ".join(parts)


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    text = argument.arg
    if argument.annotation is not None:
        text = f"{text}: {_short(argument.annotation)}"
        return text if default is None else f"{text} = {_short(default)}"
    return text if default is None else f"{text}={_short(default)}"


def _short(node: ast.expr) -> str:
    if isinstance(node, ast.Name):  # by far the most frequent cases, and unparse is slow
        return node.id
    text = repr(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)
    return text if len(text) <= MAX_DEFAULT_CHARACTERS else "..."


def _unquoted(annotation: str) -> str:
    return re.sub(r"\A'([^']*)'\Z", r"\1", annotation)
