"""BM25 against a plain Python loop, and the splitting of text into terms."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from stages.whitebox.bm25 import Bm25Index, TermCounter, split_identifier, split_terms

WORDS = [
    "lamp",
    "oil",
    "gate",
    "river",
    "stone",
    "rope",
    "wind",
    "bell",
    "读书",
    "parseHeader",
    "io.open_code",
]


def random_texts(seed: int, count: int = 40) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(0, 25))) for _ in range(count)]


def oracle(texts: list[str], query: str, row: int, k1: float, b: float) -> float:
    """The textbook formula, term by term, without an index."""
    chunks = [split_terms(text) for text in texts]
    mean_length = sum(map(len, chunks)) / len(chunks)
    score = 0.0
    for term in split_terms(query):
        df = sum(term in chunk for chunk in chunks)
        tf = chunks[row].count(term)
        idf = math.log(1 + (len(chunks) - df + 0.5) / (df + 0.5))
        score += tf and idf * tf / (tf + k1 * (1 - b + b * len(chunks[row]) / mean_length))
    return score


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.9, 0.4), (2.0, 0.0), (1.2, 1.0), (0.0, 0.5)])
def test_scores_are_the_formula(k1: float, b: float) -> None:
    texts = random_texts(seed=1)
    index = Bm25Index.from_texts(texts, k1, b)
    for query in ["lamp oil", "lamp lamp wind", "parse header", "读书", "open code of the gate"]:
        expected = [oracle(texts, query, row, k1, b) for row in range(len(texts))]
        np.testing.assert_allclose(index.scores(query), expected, rtol=1e-5, atol=1e-6)


def test_scores_agree_with_bm25s() -> None:
    bm25s = pytest.importorskip("bm25s")
    texts = [text for text in random_texts(seed=2) if text]
    retriever = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    retriever.index([split_terms(text) for text in texts], show_progress=False)
    index = Bm25Index.from_texts(texts)
    for query in ["lamp oil", "river stone rope", "parseHeader"]:
        expected = retriever.get_scores(split_terms(query))
        np.testing.assert_allclose(index.scores(query), expected, rtol=1e-4, atol=1e-5)


def test_unknown_terms_score_nothing() -> None:
    index = Bm25Index.from_texts(["a lamp", "", "a gate"])
    assert index.scores("zeppelin").tolist() == [0, 0, 0]
    assert index.scores("").tolist() == [0, 0, 0]
    assert index.scores("lamp")[0] > 0 == index.scores("lamp")[1]


def test_an_index_of_nothing_answers() -> None:
    assert Bm25Index.from_texts([]).scores("lamp").shape == (0,)
    assert Bm25Index.from_texts(["", "  "]).scores("lamp").tolist() == [0, 0]


def test_arrays_do_not_depend_on_the_order_of_numbering() -> None:
    texts = ["wind bell", "bell rope", "oil"]
    one = Bm25Index.from_texts(texts)
    counter = TermCounter()
    counter.ids("rope oil zeppelin bell wind")
    other = Bm25Index.from_term_ids([counter.ids(text) for text in texts], counter.numbers)
    assert list(one.terms) == ["bell", "oil", "rope", "wind"]
    assert list(other.terms) == ["bell", "oil", "rope", "wind", "zeppelin"]
    for query in ("bell", "wind oil", "zeppelin"):
        assert one.scores(query).tolist() == other.scores(query).tolist()


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        (
            "itertools.chainFromIterable",
            ["itertools.chainfromiterable", "itertool", "chainfromiterable", "chain", "from", "iterable"],
        ),
        ("parse_http_header", ["parse_http_header", "parse", "http", "header"]),
        ("HTTPServer2", ["httpserver2", "http", "server", "2"]),
        ("__init__", ["init"]),
        ("The boxes, the classes; gas is glass.", ["the", "boxe", "the", "classe", "gas", "is", "glass"]),
        ("policies ties", ["policy", "tie"]),
        ("你好世界", ["你好", "好世", "世界"]),
        ("用 pip 装", ["用", "pip", "装"]),
        ("ｆｕｌｌ－width", ["full", "width"]),
        ("اَلْعَرَبِيَّةُ", ["العربية"]),
        ("naïve Café", ["naïve", "café"]),
        ("हिन्दी", ["हिन्दी"]),
        ("!?… — \n", []),
    ],
)
def test_terms(text: str, terms: list[str]) -> None:
    assert split_terms(text) == terms


def test_identifiers_are_found_by_any_of_their_parts() -> None:
    index = Bm25Index.from_texts(["see itertools.chain_from_iterable", "see itertools.cycle", "a chain"])
    for query in ("itertools.chain_from_iterable", "chain_from_iterable", "chain from iterable"):
        assert index.scores(query).argmax() == 0, query
    assert split_identifier("_parseHTTPHeader2") == ["parse", "http", "header", "2"]
