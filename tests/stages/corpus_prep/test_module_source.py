"""Signatures as `inspect` shows them, and docstrings that carry their own."""

from __future__ import annotations

import ast
import base64
import functools
import inspect
import json
import re
import shutil
import statistics
import textwrap
from types import FunctionType, ModuleType
from typing import Any

import pytest

from stages.corpus_prep.docstring_calls import added_docstrings
from stages.corpus_prep.docstring_signature import split_signature
from stages.corpus_prep.harvest_files import SourceFile
from stages.corpus_prep.module_source import parameters, parse_module
from stages.corpus_prep.public_names import public_titles

MODULES = (base64, functools, json, re, shutil, statistics, textwrap)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_parameters_agree_with_inspect(module: ModuleType) -> None:
    tree = ast.parse(inspect.getsource(module))
    checked = 0
    for node in tree.body:
        function = getattr(module, getattr(node, "name", ""), None)
        if (
            not isinstance(node, ast.FunctionDef)
            or not isinstance(function, FunctionType)
            or node.decorator_list
        ):
            continue
        expected = list(inspect.signature(function).parameters.values())
        space: dict[str, Any] = {}
        exec(f"def f({_simplified(parameters(node.args))}): pass", space)
        found = inspect.signature(space["f"]).parameters
        assert [(p.name, p.kind, p.default is p.empty) for p in expected] == [
            (p.name, p.kind, p.default is p.empty) for p in found.values()
        ]
        checked += 1
    assert checked


def _simplified(text: str) -> str:
    """The parameter list with 0 for every default and without annotations, so that it needs no names."""
    arguments = ast.parse(f"def f({text}): pass").body[0].args  # type: ignore[attr-defined]
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    arguments.defaults = [ast.Constant(0) for _ in arguments.defaults]
    arguments.kw_defaults = [d and ast.Constant(0) for d in arguments.kw_defaults]
    return ast.unparse(arguments)


def test_long_defaults_become_dots() -> None:
    arguments = ast.parse(f"def f(a, b={'x' * 50!r}, *, c: int = 1, **d): pass").body[0].args
    assert parameters(arguments) == "a, b=..., *, c: int = 1, **d"


@pytest.mark.parametrize(
    ("docstring", "signature", "rest"),
    [
        ("f(a[, b])\n\nDo it.", "f(a[, b])", "Do it."),
        ("f($self, x, /)\n--\n\nDo it.", "f(x, /)", "Do it."),
        ("f(a) --> list\n\nDo it.", "f(a) -> list", "Do it."),
        ("linalg.f(A, *, out=None) -> Tensor\n\nInvert.", "f(A, *, out=None) -> Tensor", "Invert."),
        ("f(a) is a function.", "", "f(a) is a function."),
        ("f(stop) -> x\nf(start, stop) -> x\n\nCount.", "f(stop) -> x", "Count."),
        ("Just text.", "", "Just text."),
        ("", "", ""),
    ],
)
def test_split_signature(docstring: str, signature: str, rest: str) -> None:
    assert split_signature("f", docstring) == (signature, rest)


def test_overloads_and_properties_and_records(tmp_path) -> None:
    path = tmp_path / "m.py"
    path.write_text(
        "from typing import overload\n"
        "@overload\ndef f(a: int): ...\n"
        'def f(a):\n    """Real."""\n'
        "@dataclass\nclass P:\n    '''A point.'''\n    x: int\n    y: int = 0\n"
        "try:\n    import fast\nexcept ImportError:\n    def g():\n        '''Fallback.'''\n",
        encoding="utf-8",
    )
    module = parse_module(SourceFile("m", path, 1))
    assert module is not None
    assert module.symbols["f"].signature == "f(a)"
    assert module.symbols["P"].signature == "class P(x: int, y: int = 0)"
    assert module.symbols["g"].docstring == "Fallback."


def test_unreadable_files_are_left_out(tmp_path) -> None:
    path = tmp_path / "m.py"
    path.write_bytes(b"\x00\xff def")
    assert parse_module(SourceFile("m", path, 1)) is None
    assert parse_module(SourceFile("m", tmp_path / "missing.py", 1)) is None


def _modules(tmp_path, sources: dict[str, str]):
    found = {}
    for name, source in sources.items():
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
        module = parse_module(SourceFile(name.removesuffix(".__init__"), path, 1))
        assert module is not None
        found[module.name] = module
    return found


def test_public_titles_follow_re_exports_and_stars(tmp_path) -> None:
    modules = _modules(
        tmp_path,
        {
            "p.__init__": "from .a import *\nfrom ._b import hidden as shown\nfrom json import loads\n",
            "p.a": "from .deep.c import inner\n__all__ = ['f', 'inner']\ndef f(): 'F.'\ndef left(): 'N.'\n",
            "p._b": "def hidden(): 'H.'\ndef private_only(): 'P.'\n",
            "p.deep.c": "from p.a import f\ndef inner(): 'I.'\ndef other(): 'O.'\n",
            "p.loop1": "from .loop2 import *\n",
            "p.loop2": "from .loop1 import *\n",
        },
    )
    titles = public_titles(modules)
    assert titles == {
        ("p.a", "f"): "p.f",
        ("p.deep.c", "inner"): "p.inner",
        ("p._b", "hidden"): "p.shown",
        ("p.deep.c", "other"): "p.deep.c.other",
    }


def test_star_imports_do_not_bring_aliases_that_are_not_exported(tmp_path) -> None:
    modules = _modules(
        tmp_path,
        {
            "n.__init__": "from n.one import *\nfrom n.two import *\n",
            "n.one": "from n._impl import fast as path\n__all__ = ['g']\ndef g(): 'G.'\n",
            "n.two": "__all__ = ['path']\ndef path(): 'The real one.'\n",
            "n._impl": "def fast(): 'Fast.'\n",
        },
    )
    assert public_titles(modules)["n.two", "path"] == "n.path"
    assert ("n._impl", "fast") not in public_titles(modules)


def test_added_docstrings_in_all_their_forms() -> None:
    tree = ast.parse(
        "notes = {'sync': 'It waits.'}\n"
        "more = merge_dicts(parse_kwargs('''\n    dim (int): where.\n'''), {'keep': 'keep it'})\n"
        "inv = _add_docstr(_x.inv, r'''linalg.inv(A)\n\nInvert.\n''' + rf'''{notes[\"sync\"]}\n''')\n"
        "add_docstr_all('abs', 'abs() -> Tensor\\n\\nSee abs.')\n"
        "add_docstr(torch.sum, '{dim}\\n{keep}\\n{unknown}\\n{{literal}}'.format(**more))\n"
        "add_docstr(torch.odd, some_function())\n"
    )
    found = {(c.module, c.name, c.member): c.docstring for c in added_docstrings(tree, "torch.linalg")}
    assert found == {
        ("torch.linalg", "inv", ""): "linalg.inv(A)\n\nInvert.\nIt waits.",
        ("torch", "Tensor", "abs"): "abs() -> Tensor\n\nSee abs.",
        ("torch", "sum", ""): "dim (int): where.\nkeep it\n{literal}",
    }
