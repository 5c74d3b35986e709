"""What the stage shows of itself: tables, charts, a few searches, and the figures for the manifest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stages.runtime.session import StageSession
from stages.vector_store.corpus import Corpus
from stages.vector_store.evaluation import ALL, Evaluation
from stages.vector_store.projection import Seal
from stages.vector_store.questions import HeldOut, Question
from stages.whitebox.retrieval_metrics import Estimate, Gain
from stages.whitebox.search import HybridIndex

SHOWN_SEARCHES = 4
SHOWN_CHARACTERS = 160


def show_corpus(corpus: Corpus, held_out: HeldOut, session: StageSession) -> None:
    """How the documents were cut, and what is held out."""
    tokens = np.array([chunk.num_tokens for chunk in corpus.chunks])
    questions = [question.split for question in held_out.questions]
    session.log(
        f"{len(corpus.documents):,} documents in {len(tokens):,} chunks of {tokens.mean():.0f} tokens each; "
        f"{len(held_out.documents):,} documents held out, {len(questions):,} questions from them"
    )
    rows = [
        ["documents", len(corpus.documents)],
        ["documents held out from training", len(held_out.documents)],
        ["questions to choose the weight (dev)", questions.count("dev")],
        ["questions to report (test)", questions.count("test")],
        ["chunks", len(tokens)],
        ["chunks with a heading", sum(bool(chunk.heading_path) for chunk in corpus.chunks)],
        ["tokens per chunk, median", int(np.median(tokens))],
        ["tokens per chunk, longest", int(tokens.max())],
    ]
    session.table("chunks", ["what", "how many"], rows, caption="What is indexed")


def show_evaluation(evaluation: Evaluation, session: StageSession) -> None:
    """The quality table with intervals, the bars, and the curve that the weight was chosen on."""
    rows = [
        [
            leg.name,
            leg.kind,
            leg.dense_weight,
            *_cells(leg.ndcg_at_10),
            *_cells(leg.recall_at_10),
            leg.ndcg_at_10.num_questions,
        ]
        for leg in evaluation.test
    ]
    columns = [
        "leg",
        "questions",
        "dense weight",
        "nDCG@10",
        "low",
        "high",
        "recall@10",
        "low",
        "high",
        "how many",
    ]
    caption = "Finding the document of a held-out question (test half, 95 % intervals)"
    session.table("retrieval_quality", columns, rows, caption=caption)
    if evaluation.test[0].ndcg_at_10.num_questions == 0:
        session.warn("there is no question to measure with: BM25 alone ships, unmeasured")
        return
    overall = [leg for leg in evaluation.test if leg.kind == ALL]
    bars = {
        "nDCG@10": [[leg.name, *leg.ndcg_at_10[:3]] for leg in overall],
        "recall@10": [[leg.name, *leg.recall_at_10[:3]] for leg in overall],
    }
    session.chart(
        "retrieval_quality", title="Retrieval on held-out questions", x_label="leg", y_label="score",
        series=bars, kind="bar",
    )  # fmt: skip
    curve = [[weight, ndcg] for weight, ndcg in evaluation.dev_ndcg_of_weight.items()]
    session.chart(
        "fusion_weight", title="Choosing the mix", x_label="weight of the vectors", y_label="nDCG@10 on dev",
        series={"dev": curve},
    )  # fmt: skip
    session.log(f"dense weight {evaluation.choice.dense_weight:.2f}: {evaluation.choice.reason}")
    _say_gain(evaluation.gain_over_best_leg, session)


def _say_gain(gain: Gain, session: StageSession) -> None:
    """Test is only reported, never chosen on: it may disagree with dev, and then we say so."""
    measured = f"{gain.mean:+.3f} nDCG@10 (95 % {gain.low:+.3f} to {gain.high:+.3f})"
    if gain.high < 0:
        session.warn(f"on test the shipped ranking is below its best leg: {measured}")
    elif gain.low > 0:
        session.log(f"on test the mix beats its best leg by {measured}")
    else:
        session.log(f"on test the shipped ranking and the best leg cannot be told apart: {measured}")


def show_searches(index: HybridIndex, questions: Sequence[Question], session: StageSession) -> None:
    """The best hit of a few test questions, for a person to judge."""
    for question in [question for question in questions if question.split == "test"][:SHOWN_SEARCHES]:
        hits = index.search(question.text, k=1)
        found = f"{hits[0].title}: {' '.join(hits[0].text.split())[:SHOWN_CHARACTERS]}" if hits else "nothing"
        session.sample(question.text, found, kind="search")


def show_projection(seal: Seal, session: StageSession) -> None:
    """What the seal says."""
    rows = [
        ["vectors", seal.num_vectors],
        ["dimensions", seal.dimensions],
        ["recall@10 against exact search", seal.recall_at_10_vs_exact],
        ["vectors found by themselves", seal.found_by_own_vector],
        ["measured with queries", seal.num_recall_queries],
        *([f"HNSW {name}", value] for name, value in seal.hnsw.items()),
    ]
    session.table("chroma", ["what", "value"], rows, caption="The Chroma projection, verified and sealed")


def headline(corpus: Corpus, held_out: HeldOut, evaluation: Evaluation, seal: Seal) -> dict[str, float]:
    """The figures of the manifest; quality is left out where there was no question to measure it with."""
    figures: dict[str, float] = {
        "num_documents": len(corpus.documents),
        "num_chunks": len(corpus.chunks),
        "num_test_questions": evaluation.test[0].ndcg_at_10.num_questions,
        "dense_weight": evaluation.choice.dense_weight,
        "recall_at_10_vs_exact": seal.recall_at_10_vs_exact,
    }
    for leg in (leg for leg in evaluation.test if leg.kind == ALL):
        for name, estimate in (("ndcg_at_10", leg.ndcg_at_10), ("recall_at_10", leg.recall_at_10)):
            if not math.isnan(estimate.mean):
                figures |= {
                    f"{name}_{leg.name}": estimate.mean,
                    f"{name}_{leg.name}_low": estimate.low,
                    f"{name}_{leg.name}_high": estimate.high,
                }
    if held_out.questions:
        figures["ndcg_at_10_gain_over_best_leg"] = evaluation.gain_over_best_leg.mean
    return figures


def _cells(estimate: Estimate) -> list[float | None]:
    return [None if math.isnan(value) else round(value, 4) for value in estimate[:3]]
