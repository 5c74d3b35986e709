"""Documentation of the part of the standard library that has no Python source: builtins, `itertools`, `math`.

It is compiled into the interpreter, so there is no file to parse. Its docstrings are read from the modules'
objects; importing them runs none of anybody's Python code.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from types import ModuleType
from typing import Any

from stages.corpus_prep.docstring_signature import split_signature
from stages.corpus_prep.harvested_python import harvested_python
from stages.corpus_prep.module_source import ModuleSource, Symbol

#: Modules written in C, with the name under which users know what they define.
C_MODULES = (
    ("builtins", ""),
    ("itertools", "itertools"),
    ("math", "math"),
    ("cmath", "cmath"),
    ("time", "time"),
    ("sys", "sys"),
    ("gc", "gc"),
    ("atexit", "atexit"),
    ("array", "array"),
    ("binascii", "binascii"),
    ("select", "select"),
    ("zlib", "zlib"),
    ("unicodedata", "unicodedata"),
    ("_collections", "collections"),
    ("_functools", "functools"),
    ("_operator", "operator"),
    ("_bisect", "bisect"),
    ("_heapq", "heapq"),
    ("_struct", "struct"),
    ("_random", "random"),
    ("_datetime", "datetime"),
    ("_socket", "socket"),
    ("_thread", "_thread"),
    ("posix", "os"),
    ("mmap", "mmap"),
    ("resource", "resource"),
    ("fcntl", "fcntl"),
)


def interpreter_modules() -> Iterator[ModuleSource]:
    """One record per C module of the Python that is harvested; `name` is the public one, "" for builtins."""
    described = harvested_python().compiled_modules
    if described is None:
        yield from own_interpreter_modules()
        return
    for record in described:
        symbols = {name: _read_symbol(symbol) for name, symbol in record["symbols"].items()}
        yield ModuleSource(record["name"], record["docstring"], symbols=symbols)


def _read_symbol(record: Mapping[str, Any]) -> Symbol:
    methods = {name: _read_symbol(method) for name, method in record["methods"].items()}
    return Symbol(**{**record, "bases": tuple(record["bases"]), "methods": methods})


def own_interpreter_modules() -> Iterator[ModuleSource]:
    """The same, of the interpreter that runs."""
    for name, public in C_MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:  # not on this platform
            continue
        yield _module(module, public)


def _module(module: ModuleType, public: str) -> ModuleSource:
    documented = "" if module.__name__.startswith("_") else inspect.cleandoc(module.__doc__ or "")
    record = ModuleSource(public, documented)
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or not callable(value):
            continue
        symbol = _class(name, value) if isinstance(value, type) else _callable(name, value)
        if symbol.is_documented and symbol.name not in record.symbols:
            record.symbols[symbol.name] = symbol
    return record


def _callable(name: str, value: Any) -> Symbol:
    signature, docstring = split_signature(name, value.__doc__ or "")
    return Symbol(name, "function", signature or _declared(name, value), docstring)


def _class(name: str, value: type) -> Symbol:
    own = _callable(name, value)
    bases = tuple(base.__name__ for base in value.__bases__ if base is not object)
    symbol = Symbol(name, "class", f"class {own.signature}", own.docstring, bases)
    for member, item in sorted(vars(value).items()):
        if not member.startswith("_") and callable(item) and (method := _callable(member, item)).docstring:
            symbol.methods[member] = method
    return symbol


def _declared(name: str, value: Any) -> str:
    try:
        text = str(inspect.signature(value))
    except (ValueError, TypeError):
        return f"{name}(...)"
    text = re.sub(r"\(self(?:, /)?(?:, )?", "(", text)
    return name + re.sub(r"\$\w+(?:, )?", "", text)


if __name__ == "__main__":
    print(json.dumps([asdict(module) for module in own_interpreter_modules()]))
