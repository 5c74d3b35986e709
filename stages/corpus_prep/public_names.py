"""Under which name a user knows a symbol: `numpy.sum`, not `numpy._core.fromnumeric.sum`.

Packages define things in private modules and re-export them. The shortest public path wins, found from the
import statements alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stages.corpus_prep.module_source import ModuleSource

#: Implementation modules of the standard library that users know under another name.
RENAMED_MODULES = {"posixpath": "os.path", "_collections_abc": "collections.abc"}
HIDDEN_MODULES = frozenset({"ntpath", "genericpath", "sre_compile", "sre_parse", "sre_constants"})

Place = tuple[str, str]
"""(module, name) of a definition."""


def is_public_module(name: str) -> bool:
    """Whether no part of the path is private."""
    return name not in HIDDEN_MODULES and not any(part.startswith("_") for part in name.split("."))


def public_titles(modules: Mapping[str, ModuleSource]) -> dict[Place, str]:
    """Definition -> the name that a user would import it by; what has no public name is left out."""
    names = ReExports(modules)
    titles: dict[Place, str] = {}
    for name in sorted(modules):
        shown = RENAMED_MODULES.get(name, name)
        if not is_public_module(shown):
            continue
        for local, place in names.public_places(name):
            title = f"{shown}.{local}"
            if place not in titles or _rank(title) < _rank(titles[place]):
                titles[place] = title
    return titles


def _rank(title: str) -> tuple[int, int, str]:
    return title.count("."), len(title), title


class ReExports:
    """Follows the imports inside one package from a name to its definition."""

    def __init__(self, modules: Mapping[str, ModuleSource]) -> None:
        self.modules = modules
        self._exported: dict[str, frozenset[str]] = {}

    def public_places(self, name: str) -> Iterator[tuple[str, Place]]:
        """(local name, definition) for what the module defines or deliberately re-exports."""
        module = self.modules[name]
        for local in module.symbols:
            if not local.startswith("_") and (module.all_names is None or local in module.all_names):
                yield local, (name, local)
        for local in sorted(self._reexported(module)):
            place = self.resolve(name, local)
            if place is not None and _may_reexport(name, place[0]):
                yield local, place

    def _reexported(self, module: ModuleSource) -> set[str]:
        """Imported names that count as the module's own: those in `__all__`, or all of an `__init__`."""
        names = set(module.imports) if module.is_package or module.all_names is not None else set()
        for star in module.stars:
            names |= self.exported(star)
        # A package's computed __all__ is only partly known, so its own imports count in any case.
        if module.all_names is not None and not module.is_package:
            names &= module.all_names
        return {n for n in names if not n.startswith("_") and n not in module.symbols}

    def exported(self, name: str) -> frozenset[str]:
        """What `from name import *` brings."""
        if name not in self._exported:
            self._exported[name] = frozenset()  # ends circular stars
            self._exported[name] = self._compute_exported(name)
        return self._exported[name]

    def _compute_exported(self, name: str) -> frozenset[str]:
        module = self.modules.get(name)
        if module is None:
            return frozenset()
        if module.all_names:
            return module.all_names
        names = {n for n in (*module.symbols, *module.imports) if not n.startswith("_")}
        for star in module.stars:
            names |= self.exported(star)
        return frozenset(names)

    def resolve(self, name: str, local: str, seen: frozenset[Place] = frozenset()) -> Place | None:
        """Follow imports from `name`.`local` to the definition, or None where it lies outside."""
        module = self.modules.get(name)
        if module is None or (name, local) in seen:
            return None
        if local in module.symbols:
            return name, local
        seen |= {(name, local)}
        if local in module.imports:
            origin, original = module.imports[local]
            return self.resolve(origin, original, seen)
        for star in module.stars:
            if local in self.exported(star) and (place := self.resolve(star, local, seen)) is not None:
                return place
        return None


def _may_reexport(public: str, origin: str) -> bool:
    """Inside one package, or from a private helper such as `_collections_abc`: not a mere use of another."""
    same_package = public.partition(".")[0] == origin.partition(".")[0]
    return same_package or origin.startswith("_") or origin in HIDDEN_MODULES
