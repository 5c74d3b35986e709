"""The default input: what the user's own Python says about itself, as documents.

One document per module (its docstring and an index of its members), per public class (with its methods), per
public function, and per topic of the language reference that Python ships with. Files are parsed, never
imported, and the order is fixed, so the same environment gives the same corpus to the byte.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.corpus_prep.docstring_signature import split_signature
from stages.corpus_prep.harvest_files import STANDARD_LIBRARY, PackageFiles
from stages.corpus_prep.interpreter_docs import interpreter_modules
from stages.corpus_prep.module_source import ModuleSource, Symbol, parse_module
from stages.corpus_prep.public_names import RENAMED_MODULES, is_public_module, public_titles
from stages.corpus_prep.sampling import fair_shares

TOPICS_MODULE = "pydoc_data.topics"
MIN_MODULE_CHARACTERS = 20
MAX_METHOD_CHARACTERS = 16_000
STANDARD_LIBRARY_WEIGHT = 3.0
"""How many times another package's share the standard library gets when the limit is tight."""


@dataclass(frozen=True)
class HarvestedDocument:
    """A document before cleaning; `title` is the name that a user would import it by."""

    package: str
    title: str
    kind: str
    text: str

    @property
    def num_bytes(self) -> int:
        """Length of the text in UTF-8."""
        return len(self.text.encode("utf-8", "surrogatepass"))


Progress = Callable[[int, int], None]


def harvest(
    packages: Sequence[PackageFiles], max_bytes: int, progress: Progress = lambda done, total: None
) -> list[HarvestedDocument]:
    """Documents of all `packages`, at most `max_bytes`, shared out evenly where that is too little.

    progress is called with (files read, files in all).
    """
    total = sum(len(package.files) for package in packages)
    done = 0
    found: dict[str, list[HarvestedDocument]] = {}
    for package in packages:
        found[package.name] = list(package_documents(package))
        done += len(package.files)
        progress(done, total)
    sizes = {name: sum(document.num_bytes for document in docs) for name, docs in found.items()}
    shares = fair_shares(sizes, max_bytes, {STANDARD_LIBRARY: STANDARD_LIBRARY_WEIGHT})
    return [document for name, docs in found.items() for document in _within(docs, shares[name])]


def _within(documents: list[HarvestedDocument], limit: int) -> list[HarvestedDocument]:
    """The shallowest titles that fit: `torch.nn.Linear` before `torch.a.b.c.D`. In order of titles."""
    kept, used = [], 0
    for document in sorted(documents, key=lambda d: (d.title.count("."), d.title, d.kind)):
        if used + document.num_bytes <= limit:
            used += document.num_bytes
            kept.append(document)
    return sorted(kept, key=lambda d: (d.title, d.kind))


def package_documents(package: PackageFiles) -> Iterator[HarvestedDocument]:
    """All documents of one package; two of one title and kind are one (the longer)."""
    best: dict[tuple[str, str], HarvestedDocument] = {}
    for title, kind, text in _package_texts(package):
        held = best.get((title, kind))
        if held is None or len(held.text) < len(text):
            best[title, kind] = HarvestedDocument(package.name, title, kind, text)
    yield from best.values()


def _package_texts(package: PackageFiles) -> Iterator[tuple[str, str, str]]:
    modules: dict[str, ModuleSource] = {}
    for file in package.files:
        if file.module == TOPICS_MODULE:
            yield from _topics(file.path)
        elif (module := parse_module(file)) is not None:
            modules[file.module] = module
    _attach_added(modules)
    titles = public_titles(modules)
    for (name, local), title in sorted(titles.items()):
        symbol = modules[name].symbols[local]
        if symbol.is_documented:
            yield from symbol_texts(title, symbol)
    yield from _module_texts(modules, titles)
    if package.name == STANDARD_LIBRARY:
        yield from _interpreter_texts()


def _attach_added(modules: dict[str, ModuleSource]) -> None:
    """Give docstrings that were added from elsewhere to the symbols they belong to."""
    for call in [call for name in sorted(modules) for call in modules[name].added]:
        module = modules.get(call.module)
        if module is None:
            continue
        signature, docstring = split_signature(call.member or call.name, call.docstring)
        if call.member:
            owner = module.symbols.setdefault(call.name, Symbol(call.name, "class", f"class {call.name}", ""))
            method = Symbol(call.member, "function", signature or f"{call.member}(...)", docstring)
            owner.methods.setdefault(call.member, method)
        elif not module.symbols.get(call.name, Symbol("", "", "", "")).docstring:
            held = module.symbols.get(call.name)
            kind = "class" if held is not None and held.kind == "class" else "function"
            methods = held.methods if held is not None else {}
            symbol = Symbol(call.name, kind, signature or call.name, docstring, methods=methods)
            module.symbols[call.name] = symbol
        if module.all_names is not None:  # what is documented from outside is meant to be used
            module.all_names |= {call.name}


def _module_texts(
    modules: dict[str, ModuleSource], titles: dict[tuple[str, str], str]
) -> Iterator[tuple[str, str, str]]:
    members: dict[str, list[str]] = {}
    for (name, local), title in sorted(titles.items(), key=lambda item: item[1]):
        members.setdefault(title.rpartition(".")[0], []).append(modules[name].symbols[local].signature)
    for name in sorted(modules):
        shown = RENAMED_MODULES.get(name, name)
        module = modules[name]
        if is_public_module(shown) and len(module.docstring) >= MIN_MODULE_CHARACTERS:
            yield shown, "module", module_text(shown, module.docstring, members.get(shown, []))


def _interpreter_texts() -> Iterator[tuple[str, str, str]]:
    for module in interpreter_modules():
        signatures = []
        for symbol in module.symbols.values():
            title = f"{module.name}.{symbol.name}" if module.name else symbol.name
            signatures.append(symbol.signature)
            yield from symbol_texts(title, symbol)
        if module.name and len(module.docstring) >= MIN_MODULE_CHARACTERS:
            yield module.name, "module", module_text(module.name, module.docstring, signatures)


def symbol_texts(title: str, symbol: Symbol) -> Iterator[tuple[str, str, str]]:
    """The symbol's document; the methods of a very large class are documents of their own."""
    parts = [f"# {title}", f"```python\n{symbol.signature}\n```"]
    if symbol.docstring:
        parts.append(symbol.docstring.strip())
    if symbol.bases:
        parts.append(f"Bases: {', '.join(symbol.bases)}")
    methods = [method for method in symbol.methods.values() if method.docstring]
    if sum(len(method.docstring) for method in methods) <= MAX_METHOD_CHARACTERS:
        parts += [_method_text(f"## {title}", method) for method in methods]
    else:
        parts.append(f"## Methods of {title}")
        parts.append("\n".join(f"- `{method.signature}`" for method in methods))
        for method in methods:
            yield f"{title}.{method.name}", "function", _method_text(f"# {title}", method)
    yield title, symbol.kind, "\n\n".join(parts)


def _method_text(owner: str, method: Symbol) -> str:
    return f"{owner}.{method.name}\n\n```python\n{method.signature}\n```\n\n{method.docstring.strip()}"


def module_text(title: str, docstring: str, signatures: Sequence[str]) -> str:
    """`# title`, the docstring, and the signatures of the members.

    The index names members without their summaries: those are what held-out questions ask for.
    """
    parts = [f"# {title}", docstring.strip()]
    if signatures:
        parts.append(f"## Contents of {title}")
        parts.append("\n".join(f"- `{signature}`" for signature in signatures))
    return "\n\n".join(parts)


def _topics(path: Path) -> Iterator[tuple[str, str, str]]:
    """The language reference that `help()` shows: one dict literal, read as such."""
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for topic, text in sorted(ast.literal_eval(node.value).items()):
                yield f"Python topic: {topic}", "text", f"# Python topic: {topic}\n\n{text.strip()}"
