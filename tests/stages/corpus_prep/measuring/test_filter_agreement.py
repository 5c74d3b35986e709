"""With datatrove's words our rules decide as datatrove's filters do, on documents that break each of them."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path

import pyarrow as pa
import pytest

from stages.corpus_prep.measuring.judging import judge
from stages.corpus_prep.measuring.line_edits import edit_c4_lines
from stages.corpus_prep.measuring.measures import measure
from stages.corpus_prep.measuring.rules import reasons_of
from tests.stages.corpus_prep.measuring.datatrove_reference import (
    DatatroveSplitter,
    our_rules,
    reference_decision,
    reference_filters,
)

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"
WITHOUT_CASE = {
    "gopher_quality.long_document",
    "fineweb2_zh.long_document",
    "fineweb2_zh.short_words",
}
"""A document of 100,000 words takes spaCy seconds (`test_rules` has that threshold), and no word is shorter
than one character."""


def _sentences(language: str) -> list[str]:
    if language == "en":
        lines = (FIXTURES / "corpus_english.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        return [part for text in texts for part in re.split(r"(?<=[.!?])\s+", text) if len(part) > 20]
    with (FIXTURES / "corpus_chinese.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    return [part for text in texts for part in re.split(r"(?<=[。！？])\s*", text) if len(part) > 5]


def _documents(language: str, number: int) -> list[str]:
    """Sentences put together and spoiled in one way or another, more or less."""
    rng = random.Random(f"documents {language}")
    sentences = _sentences(language)
    breaks, signs = ["\n\n", "\r\n", "\x85", "\u2028", "\n \n", "\f"], [" # ", " ... ", "…"]
    stops = r"(?i)\b(the|be|to|of|and|that|have|with)\b|[的年在月是和日了於·為有被人中为他與後也而由]"
    phrases = ["Lorem Ipsum dolor sit amet.", "lorem ipsum", "a set {1, 2} is this."]
    policy = "\nThis site uses cookies, see the Privacy Policy.\nPlease enable JavaScript now!"
    spoiled = [
        lambda text: text,
        lambda text: text.replace(" ", "\n", rng.randrange(30)),
        lambda text: "\n".join(f"{rng.choice('•-*')} {line}" for line in text.splitlines()),
        lambda text: "\n".join(line + rng.choice(["...", "…", ".", " ...  "]) for line in text.splitlines()),
        lambda text: re.sub(r"[.。]", rng.choice(["", " #", "...", "…", " 。"]), text),
        lambda text: re.sub(r"\b\w+\b", lambda m: rng.choice(["7", "12.5", m[0]]), text),
        lambda text: re.sub(r"[aeiou ]", lambda m: rng.choice([m[0], " "]), text),
        lambda text: re.sub(r" ", lambda m: rng.choice(["", m[0], ""]), text),
        lambda text: re.sub(r"[，、的 ]", rng.choice(signs), text),
        lambda text: re.sub(stops, "", text),
        lambda text: text + "\n" + rng.choice(phrases),
        lambda text: text.replace(".", " [12].[edit] [x] [citation needed]", 3),
        lambda text: re.sub(r"\n", lambda m: rng.choice(breaks), text),
        lambda text: rng.choice(["\n", " \n\n", "\u3000"]) + text + rng.choice(["\n", "\n\n\n", " "]),
        lambda text: text + policy,
        lambda text: text + " " + "x" * rng.choice([999, 1000, 1001]) + " and so on.",
        lambda text: "\n\n".join([text[: rng.randrange(len(text))]] * rng.randrange(1, 5)),
        lambda text: text + "\n" + "\n".join(["one line again and again, 再来一次。"] * rng.randrange(12)),
        lambda text: (text[: rng.randrange(4, 60)] + " ") * rng.randrange(2, 30),
        lambda text: text[: rng.randrange(40)],
        lambda text: rng.choice(["", " \n ", "\n", "\n\n", "a", "。", "[1] [2] [3]"]),
    ]
    documents = []
    for index in range(number):
        picked = rng.choices(sentences, k=rng.randrange(2, 40))
        text = "".join(part + rng.choice([" ", " ", "\n", "\n\n"]) for part in picked)
        text = spoiled[index % len(spoiled)](text)
        documents.append(rng.choice([lambda t: t, rng.choice(spoiled)])(text or " "))
    return [*documents, *sentences[:5], "\n".join(sentences), " ".join(sentences)]


@pytest.fixture(scope="module", params=["en", "zh"])
def measured(request: pytest.FixtureRequest) -> tuple[str, list[str], pa.RecordBatch]:
    """Language, documents and what was measured with datatrove's words."""
    documents = _documents(request.param, 210)
    texts = pa.array(documents, pa.large_string())
    return request.param, documents, measure(texts, DatatroveSplitter(request.param))


@pytest.mark.parametrize("name", ["gopher_quality", "gopher_repetition", "c4", "c4_fineweb", "fineweb"])
def test_every_decision_is_datatroves(measured: tuple[str, list[str], pa.RecordBatch], name: str) -> None:
    language, documents, measures = measured
    masks = judge(measures, our_rules(name, language)).tolist()
    edited, _ = edit_c4_lines(pa.array(documents, pa.large_string()), terminal_punctuation=name == "c4")
    for number, text in enumerate(documents):
        reason, left = reference_decision(name, language, text)
        ours = [found.split(".")[1] for found in reasons_of(masks[number])]
        assert (reason in ours) if reason else ours == [], (number, reason, ours, text[:200])
        if name.startswith("c4") and not reason:
            assert edited[number].as_py() == left


def test_every_rule_keeps_some_and_drops_some(measured: tuple[str, list[str], pa.RecordBatch]) -> None:
    language, documents, measures = measured
    for name in reference_filters(language):
        for rule in our_rules(name, language):
            dropped = int((judge(measures, [rule]) != 0).sum())
            if rule.name not in WITHOUT_CASE:
                assert 0 < dropped < len(documents), rule.name
