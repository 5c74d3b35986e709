"""The harvest: one document per module, class and function under its public name, and nothing is imported."""

from __future__ import annotations

import itertools
import sys
import sysconfig
from pathlib import Path

from stages.corpus_prep.harvest import harvest, package_documents
from stages.corpus_prep.harvest_files import PackageFiles, SourceFile
from stages.whitebox.tool_results import lookup_result

SHOP = {
    "shop.__init__": (
        '"""A shop that sells apples and pears."""\nfrom ._till import pay\nfrom .stock import Shelf\n'
    ),
    "shop._till": (
        "raise RuntimeError('this file must never run')\n"
        "def pay(sum_, *, coins=(1, 2)) -> int:\n"
        '    """Pay a sum with coins.\n\n    The change is returned.\n    """\n'
        "def _secret():\n"
        '    """Nobody sees this."""\n'
        "def silent(a): pass\n"
    ),
    "shop.stock": (
        "class Shelf:\n"
        '    """A shelf for fruit."""\n'
        "    def __init__(self, width: int = 3): pass\n"
        "    def put(self, fruit, *rest):\n"
        '        """Put fruit on the shelf."""\n'
        "    def _hide(self):\n"
        '        """Hide."""\n'
        "    @property\n"
        "    def size(self):\n"
        '        """How much fits."""\n'
    ),
    "shop.broken": "def (:\n",
}


def test_documents_of_a_package_without_running_it(make_package) -> None:
    documents = {d.title: d for d in package_documents(make_package(SHOP))}
    assert set(documents) == {"shop", "shop.pay", "shop.Shelf"}
    assert documents["shop.pay"].text == (
        "# shop.pay\n\n```python\npay(sum_, *, coins=(1, 2)) -> int\n```\n\n"
        "Pay a sum with coins.\n\nThe change is returned."
    )
    assert documents["shop"].text.endswith(
        "## Contents of shop\n\n- `class Shelf(width: int = 3)`\n- `pay(sum_, *, coins=(1, 2)) -> int`"
    )
    assert "shop" not in sys.modules


def test_a_class_carries_its_public_methods(make_package) -> None:
    shelf = next(d for d in package_documents(make_package(SHOP)) if d.title == "shop.Shelf")
    assert shelf.kind == "class"
    assert "## shop.Shelf.put\n\n```python\nput(fruit, *rest)\n```\n\nPut fruit on the shelf." in shelf.text
    assert "```python\nsize\n```" in shelf.text
    assert "Hide" not in shelf.text
    assert lookup_result("shop.Shelf", shelf.text) == "Shelf(width: int = 3) — A shelf for fruit."


def test_methods_of_a_very_large_class_are_documents_of_their_own(make_package) -> None:
    methods = "".join(
        f'    def m{i:03}(self):\n        """Method {i} does this. {"More. " * 40}"""\n' for i in range(100)
    )
    package = make_package({"big.__init__": f'class Big:\n    """A big class."""\n{methods}'})
    documents = {d.title: d.text for d in package_documents(package)}
    assert len(documents) == 101
    assert documents["big.Big.m042"].startswith(
        "# big.Big.m042\n\n```python\nm042()\n```\n\nMethod 42 does this."
    )
    assert "- `m042()`" in documents["big.Big"]
    assert "Method 42" not in documents["big.Big"]


def test_order_does_not_depend_on_the_order_of_files(make_package) -> None:
    package = make_package(SHOP)
    first = harvest([package], 10**6)
    for order in itertools.islice(itertools.permutations(package.files), 0, 24, 5):
        assert harvest([PackageFiles("shop", "1.0", order)], 10**6) == first
    assert [d.title for d in first] == sorted(d.title for d in first)


def test_the_limit_is_shared_out_and_shallow_names_stay(make_package) -> None:
    def functions(prefix: str, count: int) -> str:
        return "".join(f'def {prefix}{i:03}():\n    """{"word " * 20}"""\n' for i in range(count))

    large = {"large.__init__": functions("top", 30), "large.inner.deep": functions("deep", 200)}
    packages = [make_package(large), make_package({"small.__init__": functions("f", 5)})]
    packages = [PackageFiles(n, "1", p.files) for n, p in zip(("large", "small"), packages, strict=True)]
    whole = harvest(packages, 10**9)
    cut = harvest(packages, 10_000)
    assert sum(d.num_bytes for d in cut) <= 10_000
    assert [d for d in cut if d.package == "small"] == [d for d in whole if d.package == "small"]
    kept = {d.title for d in cut if d.package == "large"}
    assert {f"large.top{i:03}" for i in range(30)} <= kept
    assert 0 < sum(".deep." in title for title in kept) < 200


def test_added_docstrings_reach_their_symbols(make_package) -> None:
    package = make_package(
        {
            "ext.__init__": "from ._core import zeros\n__all__ = ['zeros']\n",
            "ext._core": (
                "def zeros(): pass\n"
                "add_newdoc('ext._core', 'zeros', '''zeros(shape, *, order=\"C\")\n\nAn array of zeros.''')\n"
                "add_newdoc('ext._core', 'grid', ('flip', '''flip($self, /)\n--\n\nTurn the grid over.'''))\n"
            ),
            "ext._docs": (
                "common = parse_kwargs('''\n    input (Tensor): the input.\n    out (Tensor): result.\n''')\n"
                "add_docstr(ext.add, r'''add(input, other) -> Tensor\n\nAdd two tensors.\n\n"
                "Args:\n    {input}\n'''.format(**common))\n"
            ),
        }
    )
    documents = {d.title: d.text for d in package_documents(package)}
    assert '```python\nzeros(shape, *, order="C")\n```\n\nAn array of zeros.' in documents["ext.zeros"]
    assert "Add two tensors.\n\nArgs:\n    input (Tensor): the input." in documents["ext.add"]


def test_the_standard_library_gives_topics_and_what_is_written_in_c() -> None:
    root = Path(sysconfig.get_paths()["stdlib"])
    names = {
        "textwrap": "textwrap.py",
        "pydoc_data.topics": "pydoc_data/topics.py",
        "posixpath": "posixpath.py",
    }
    files = tuple(SourceFile(name, root / path, 1) for name, path in names.items())
    documents = {d.title: d for d in package_documents(PackageFiles("python", "3", files))}
    assert lookup_result("textwrap.dedent", documents["textwrap.dedent"].text) == (
        "dedent(text) — Remove any common leading whitespace from every line in text."
    )
    assert "os.path.join" in documents
    assert documents["itertools.chain"].kind == "class"
    assert documents["str"].text.startswith("# str\n\n```python\nclass str(object=''")
    assert documents["math.sqrt"].text.endswith("Return the square root of x.")
    assert documents["Python topic: if"].text.startswith("# Python topic: if\n\n")
