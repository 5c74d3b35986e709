"""Conversations in which the assistant calls tools, and scenarios that test it.

The model that learns from them is tiny: sentences are short, answers repeat what the tool said, and the
arguments are as diverse as the corpus, because copying an argument is the hard part. Results are computed by
the functions that the agent runs (stages/whitebox/tool_results.py). A scenario's arguments stand in no
conversation.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from stages.corpus_prep.entries import Entry
from stages.corpus_prep.phrasings import LOOKUP, LOOKUP_AND_CALCULATE, SEARCH, SEARCH_THEN_LOOKUP
from stages.corpus_prep.reading.messages import Message
from stages.whitebox.arithmetic_requests import (
    CALCULATOR,
    CHANGES,
    PREFIXES,
    THEN_CALCULATE,
    Phrasings,
    random_expression,
)
from stages.whitebox.tool_results import calculate

MAX_TITLE_CHARACTERS = 44
MAX_RESULT_CHARACTERS = 150
MAX_QUERY_WORDS = 8
MIN_QUERY_WORDS = 3
MAX_QUERY_CHARACTERS = 80
ANSWER_PROBE_WORDS = 4
MAX_TRIES = 300

Call = dict[str, Any]


@dataclass(frozen=True)
class ToolTask:
    """A request, the calls that serve it with their results, and the final answer."""

    family: str
    prompt: str
    calls: tuple[Call, ...]
    results: tuple[str, ...]
    answer: str
    expected: str
    """A short part of the answer that a right one must contain."""
    title: str = ""
    """Title of the document that it is about, if any."""

    def messages(self) -> tuple[Message, ...]:
        """The conversation: request, then call and result in turn, then the answer."""
        turns = [Message("user", self.prompt)]
        for call, result in zip(self.calls, self.results, strict=True):
            turns += [Message("assistant", "", (call,)), Message("tool", result)]
        return (*turns, Message("assistant", self.answer))

    def uses(self) -> set[str]:
        """All arguments, and the document's title: what must not be in training if this is a scenario."""
        arguments = {str(value) for call in self.calls for value in call["arguments"].values()}
        return arguments | ({self.title} if self.title else set())


def call(tool: str, argument: str) -> Call:
    """A tool call in the form that conversations store."""
    name = {"calculator": "expression", "lookup": "symbol", "search": "query"}[tool]
    return {"name": tool, "arguments": {name: argument}}


class ToolTaskMaker:
    """Draws tool tasks from a seeded generator; an expression is drawn once, a document again only after all.

    entries: documents whose names and first sentences serve as arguments. phrasing: "seen" or "unseen".
    reserved: arguments and titles that no task may use (read at every draw, so the caller may add to it).
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        seed: str,
        phrasing: str = "seen",
        reserved: AbstractSet[str] = frozenset(),
    ) -> None:
        self.rng = random.Random(seed)
        self.phrasing = phrasing
        self.reserved = reserved
        self._drawn: set[str] = set()
        self._symbols = _endless([e for e in entries if _is_askable(e)], self.rng)
        self._queries = _endless([e for e in entries if _query_of(e)], self.rng)
        self.makers: dict[str, Callable[[], ToolTask | None]] = {"calculator": self.calculator}
        if self._symbols is not None:
            self.makers |= {"lookup": self.lookup, "lookup_and_calculate": self.lookup_and_calculate}
        if self._queries is not None:
            self.makers["search"] = self.search
        if self._symbols is not None and self._queries is not None:
            self.makers["search_then_lookup"] = self.search_then_lookup
        self.makers["then_calculate"] = self.then_calculate

    def calculator(self) -> ToolTask:
        """One calculation."""
        expression = self._expression()
        result = calculate(expression)
        prompt = self._ask(CALCULATOR, expression=expression)
        calls = (call("calculator", expression),)
        return ToolTask("calculator", prompt, calls, (result,), f"The answer is {result}.", result)

    def lookup(self) -> ToolTask | None:
        """One look-up of a name."""
        if (entry := self._symbol()) is None:
            return None
        prompt = self._ask(LOOKUP, symbol=entry.title)
        calls = (call("lookup", entry.title),)
        return ToolTask(
            "lookup",
            prompt,
            calls,
            (entry.lookup,),
            _found(entry.lookup),
            _probe(entry.sentence),
            entry.title,
        )

    def search(self) -> ToolTask | None:
        """One search for what a document begins with."""
        if (entry := self._searchable()) is None:
            return None
        query = _query_of(entry)
        prompt = self._ask(SEARCH, query=query)
        calls = (call("search", query),)
        return ToolTask(
            "search", prompt, calls, (entry.search,), _found(entry.search), entry.title, entry.title
        )

    def then_calculate(self) -> ToolTask | None:
        """A calculation on the result of a calculation."""
        expression = self._expression(whole=True)
        first = calculate(expression)
        sign = self.rng.choice(sorted(CHANGES))
        number = self.rng.randint(2, 9) if sign == "*" else self.rng.randint(2, 99)
        second = f"{first}{sign}{number}"
        result = calculate(second)
        prompt = self._ask(THEN_CALCULATE, expression=expression, change=CHANGES[sign].format(number=number))
        calls = (call("calculator", expression), call("calculator", second))
        return ToolTask("multi_step", prompt, calls, (first, result), f"The answer is {result}.", result)

    def lookup_and_calculate(self) -> ToolTask | None:
        """A look-up and a calculation in one request."""
        if (entry := self._symbol()) is None:
            return None
        expression = self._expression()
        value = calculate(expression)
        prompt = self._ask(LOOKUP_AND_CALCULATE, symbol=entry.title, expression=expression)
        calls = (call("lookup", entry.title), call("calculator", expression))
        answer = f"{_found(entry.lookup)} The answer is {value}."
        results = (entry.lookup, value)
        return ToolTask("multi_step", prompt, calls, results, answer, f"answer is {value}", entry.title)

    def search_then_lookup(self) -> ToolTask | None:
        """A look-up of the title that a search gives."""
        if (entry := self._searchable(symbol=True)) is None:
            return None
        query = _query_of(entry)
        prompt = self._ask(SEARCH_THEN_LOOKUP, query=query)
        calls = (call("search", query), call("lookup", entry.title))
        results = (entry.search, entry.lookup)
        answer, expected = _found(entry.lookup), _probe(entry.sentence)
        return ToolTask("multi_step", prompt, calls, results, answer, expected, entry.title)

    def _ask(self, phrasings: Phrasings, **arguments: str) -> str:
        template = self.rng.choice(phrasings.of(self.phrasing))
        return self.rng.choice(PREFIXES) + template.format(**arguments)

    def _symbol(self) -> Entry | None:
        return self._next(self._symbols, _is_askable)

    def _searchable(self, symbol: bool = False) -> Entry | None:
        return self._next(self._queries, _is_askable if symbol else bool)

    def _next(self, stream: Iterator[Entry] | None, accept: Callable[[Entry], bool]) -> Entry | None:
        """The next entry that fits and is not reserved; None where there seems to be none."""
        for entry in itertools.islice(stream or (), MAX_TRIES):
            if accept(entry) and not self.reserved & {entry.title, _query_of(entry)}:
                return entry
        return None

    def _expression(self, whole: bool = False) -> str:
        """An expression that was not drawn before; whole: with an integral, short result."""
        while True:
            expression = random_expression(self.rng)
            if expression in self.reserved or expression in self._drawn:
                continue
            if not whole or re.fullmatch(r"-?\d{1,6}", calculate(expression)):
                self._drawn.add(expression)
                return expression


def _is_askable(entry: Entry) -> bool:
    return (
        entry.is_symbol
        and len(entry.title) <= MAX_TITLE_CHARACTERS
        and len(entry.lookup) <= MAX_RESULT_CHARACTERS
    )


_PLAIN_QUERY = re.compile(r"[A-Za-z][A-Za-z0-9,'/-]*(?: [A-Za-z0-9][A-Za-z0-9,'/-]*)*\Z")
"""Words as people type them: no lone dash, no double space."""


def _query_of(entry: Entry) -> str:
    """What somebody would search for who wants this document: its first sentence's opening words.

    "" where that makes no good query: too short, cut, with symbols, or a result too long to repeat.
    """
    sentence = entry.sentence.rstrip(".。!?؟ ")
    if len(entry.search) > MAX_RESULT_CHARACTERS or len(entry.title) > MAX_TITLE_CHARACTERS:
        return ""
    if not sentence.isascii():
        return sentence if 6 <= len(sentence) <= 30 and not re.search(r"[\"\\\n]", sentence) else ""
    words = sentence.split(" ")[:MAX_QUERY_WORDS]
    while words and words[-1].lower().strip(",") in _LOOSE_ENDS:
        words.pop()
    query = " ".join(words).rstrip(",")
    if len(words) < MIN_QUERY_WORDS or len(query) > MAX_QUERY_CHARACTERS or not _PLAIN_QUERY.match(query):
        return ""
    is_verb = entry.is_code and words[0][1:] == words[0][1:].lower()
    return query[0].lower() + query[1:] if is_verb else query


# fmt: off
_LOOSE_ENDS = frozenset((
    "a", "an", "the", "of", "to", "in", "for", "and", "or", "with", "on", "by", "is", "that", "from", "as",
    "at", "who", "which", "was", "are", "located", "its", "this", "be", "has", "into", "if", "when", "where",
    "also",
))
# fmt: on


def _found(result: str) -> str:
    return f"Found: {result}"


def _probe(sentence: str) -> str:
    """A part of a right answer: the first words, or the first characters where there are no spaces."""
    words = sentence.split(" ")
    return " ".join(words[:ANSWER_PROBE_WORDS]) if len(words) > 1 else sentence[:8]


def _endless(entries: Sequence[Entry], rng: random.Random) -> Iterator[Entry] | None:
    """The entries in random order, again and again in new orders; None where there are none."""
    return _shuffled_rounds(list(entries), rng) if entries else None


def _shuffled_rounds(entries: list[Entry], rng: random.Random) -> Iterator[Entry]:
    while True:
        rng.shuffle(entries)
        yield from entries


#: Share of each kind among the training conversations. Names and queries are harder to copy than digits.
WEIGHTS = {
    "calculator": 20,
    "lookup": 28,
    "search": 28,
    "then_calculate": 8,
    "lookup_and_calculate": 8,
    "search_then_lookup": 8,
}


def tool_tasks(maker: ToolTaskMaker, number: int) -> Iterator[ToolTask]:
    """`number` different tasks in the shares of `WEIGHTS`, mixed; fewer where arguments run out."""
    kinds = sorted(maker.makers)
    weights = [WEIGHTS[kind] for kind in kinds]
    seen: set[str] = set()
    for kind in maker.rng.choices(kinds, weights, k=2 * number):
        if len(seen) >= number:
            return
        task = maker.makers[kind]()
        if task is not None and task.prompt not in seen and not task.uses() & maker.reserved:
            seen.add(task.prompt)
            yield task
