"""Calculations that people ask for, and how they ask.

corpus_prep writes conversations and scenarios with them, and the dpo stage sets tasks whose answers are
rewarded: a model that learned on one wording and is tested on another has learned the wrong thing. Some
phrasings are never trained on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

PREFIXES = (
    "",
    "",
    "",
    "Please: ",
    "Hi! ",
    "Hello. ",
    "Quick question: ",
    "Next: ",
    "OK. ",
    "One more: ",
    "Thanks. ",
)


@dataclass(frozen=True)
class Phrasings:
    """Templates of one family: those of conversations, and those that only scenarios use.

    rewarded: those of tasks without a model answer, from which only rewards can teach.
    """

    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    rewarded: tuple[str, ...] = ()

    def of(self, phrasing: str) -> tuple[str, ...]:
        """phrasing is "seen", "unseen" or "rewarded"."""
        return {"seen": self.seen, "unseen": self.unseen, "rewarded": self.rewarded}[phrasing]


CALCULATOR = Phrasings(
    seen=(
        "Calculate {expression}.",
        "Compute {expression}.",
        "What is {expression}?",
        "How much is {expression}?",
        "Work out {expression}.",
        "Evaluate {expression}.",
        "Use the calculator for {expression}.",
        "Find the value of {expression}.",
        "{expression} = ?",
        "Give me the result of {expression}.",
        "Can you calculate {expression}?",
        "I need {expression}.",
    ),
    unseen=(
        "Solve {expression} for me.",
        "Tell me what {expression} makes.",
        "What do you get for {expression}?",
    ),
    rewarded=(
        "{expression}",
        "{expression}?",
        "{expression} please.",
        "What's {expression}?",
        "Add it up: {expression}.",
        "Let me know the value of {expression}.",
        "How large is {expression}?",
        "Which number is {expression}?",
        "I wonder what {expression} is.",
        "My homework says {expression}.",
        "Do this sum for me: {expression}.",
        "Figure out {expression}, please.",
        "What does {expression} come to?",
        "What is the result when you work out {expression}?",
        "{expression} is how much?",
        "Say what {expression} equals.",
    ),
)

THEN_CALCULATE = Phrasings(
    seen=(
        "Calculate {expression}, then {change}.",
        "Compute {expression} and then {change}.",
        "What is {expression}? Then {change}.",
        "Work out {expression}, after that {change}.",
        "First calculate {expression}, then {change}.",
        "Evaluate {expression}. Next, {change}.",
    ),
    unseen=("Start with {expression}, then {change}.", "Find {expression} first and {change} afterwards."),
    rewarded=(
        "What is {expression}? And now {change}.",
        "Take {expression} and {change}.",
        "I need {expression}; then {change}.",
        "{expression}, and then {change}.",
        "Do {expression}. After that, {change}.",
        "Get the value of {expression}, and {change} when you have it.",
    ),
)
CHANGES = {
    "+": "add {number} to the result",
    "-": "subtract {number} from the result",
    "*": "multiply the result by {number}",
}


def random_expression(rng: random.Random) -> str:
    """Two or three small numbers, sometimes with parentheses, a power or a decimal fraction."""

    def number() -> str:
        return str(rng.randint(*rng.choice(((2, 9), (10, 99), (10, 99), (100, 999)))))

    a, b, c = number(), number(), number()
    sign, other = rng.choice("+-*"), rng.choice("+-*")
    shapes = (
        f"{a}{sign}{b}",
        f"{a}{sign}{b}",
        f"{a}{sign}{b}",
        f"{a}/{b}",
        f"{a}{sign}{b}{other}{c}",
        f"({a}{rng.choice('+-')}{b})*{rng.randint(2, 9)}",
        f"{a}*({b}{rng.choice('+-')}{c})",
        f"{rng.randint(2, 30)}**{rng.randint(2, 3)}",
        f"{rng.randint(1, 99)}.{rng.randint(1, 9)}{sign}{rng.randint(2, 20)}",
    )
    return rng.choice(shapes)
