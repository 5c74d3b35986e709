"""The agent's three tools, their signatures for the grammar, and the guard in front of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.agent_smoke.symbol_index import SymbolIndex
from stages.whitebox.argument_forms import Arithmetic, IdentifierPath, JsonText
from stages.whitebox.search import HybridIndex
from stages.whitebox.tool_grammar import Argument, CallGrammar, ToolSignature
from stages.whitebox.tool_results import ERROR, calculator_result, search_result

CALCULATOR = ToolSignature("calculator", (Argument("expression", Arithmetic(), 64),))
LOOKUP = ToolSignature("lookup", (Argument("symbol", IdentifierPath(), 96),))
SEARCH = ToolSignature("search", (Argument("query", JsonText(trimmed=True), 120),))


@dataclass(frozen=True)
class Tool:
    """A signature and the function behind it: the arguments' texts in order to the result's text."""

    signature: ToolSignature
    function: Callable[..., str]


class ToolBox:
    """Runs tool calls. A call that fits no tool is no exception but a result that says what is wrong."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self.tools = dict(tools)
        self.grammar = CallGrammar([tool.signature for tool in self.tools.values()])

    def problem(self, call: Mapping[str, Any]) -> str | None:
        """Why this call cannot run, or None. `call` is {"name", "arguments"} as the model wrote it."""
        tool = self.tools.get(call.get("name", ""))
        if tool is None:
            return f"there is no tool {call.get('name')!r}; tools: {', '.join(self.tools)}"
        expected = [argument.name for argument in tool.signature.arguments]
        arguments = call.get("arguments")
        if not isinstance(arguments, dict) or arguments.keys() != set(expected):
            return f"{tool.signature.name} takes {', '.join(expected)}"
        wrong = [name for name, value in arguments.items() if not isinstance(value, str) or not value]
        return f"{', '.join(wrong)} must be a text" if wrong else None

    def run(self, call: Mapping[str, Any]) -> str:
        """The result's text; it begins with "error: " where there is none."""
        if (problem := self.problem(call)) is not None:
            return ERROR + problem
        tool = self.tools[call["name"]]
        return tool.function(*(call["arguments"][argument.name] for argument in tool.signature.arguments))


def open_toolbox(documents: Path | None, store: Path | None) -> ToolBox:
    """The calculator, `lookup` over a documents part, `search` over a vector store part; each where given.

    Raises ValueError where the store's folder holds no index.
    """
    tools = [Tool(CALCULATOR, calculator_result)]
    if documents is not None:
        tools.append(Tool(LOOKUP, SymbolIndex(documents).answer))
    if store is not None:
        tools.append(Tool(SEARCH, searcher(HybridIndex.from_folder(store))))
    return ToolBox({tool.signature.name: tool for tool in tools})


def searcher(index: HybridIndex) -> Callable[[str], str]:
    """A function from a query to title and first sentence of the best hit."""

    def search(query: str) -> str:
        hits = index.search(query, 1)
        return search_result(hits[0].title, hits[0].text) if hits else ERROR + "nothing found"

    return search
