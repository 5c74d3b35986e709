"""Benchmark evaluation as a story: draw the questions, score one model after the other, say what holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from data_contracts.eval_results import EVAL_PREDICTIONS, EVAL_RESULTS
from data_contracts.tables import write_part
from stages.benchmark_eval.findings import headline, show
from stages.benchmark_eval.questions import draw_questions
from stages.benchmark_eval.results import Evaluation, prediction_rows, result_rows
from stages.benchmark_eval.spec import BenchmarkEvalConfig
from stages.runtime.errors import StopRequested, UserError
from stages.runtime.session import StageSession
from stages.whitebox.batches import TokenShards
from stages.whitebox.checkpoint import load_model
from stages.whitebox.device import fix_threads, pick_device
from stages.whitebox.document_scores import DocumentScores, documents_within, score_documents
from stages.whitebox.model import CausalLM
from stages.whitebox.multiple_choice import CHAT, PLAIN, PROTOCOLS, Question, Scores, score_choices
from stages.whitebox.quantized_checkpoint import load_quantized
from stages.whitebox.tokenizer import Tokenizer

PROTOCOLS_OF = {
    "base": (PLAIN,),  # it has never seen a chat
    "sft": (PLAIN, CHAT),
    "dpo": (PLAIN, CHAT),
    "int8": (PLAIN, CHAT),
    "int4": (PLAIN, CHAT),
}
"""Every model gets the question as plain text, so that all can be compared; chat models also as a chat."""

QUANTIZED = ("int8", "int4")


def run(
    config: BenchmarkEvalConfig,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    session: StageSession,
) -> dict[str, float]:
    """Score every model on the same documents and questions; write rows with intervals and verdicts."""
    with _explained():
        fix_threads(config.num_threads)
        tokenizer = Tokenizer.from_folder(inputs["tokenizer"])
        questions, num_available = draw_questions(inputs["benchmark"], config.max_questions, config.seed)
        session.log(f"{len(questions)} of {num_available} questions, drawn with seed {config.seed}")
        if not questions:
            session.warn("the benchmark has no questions: only bits per byte is measured")
        evaluation = _evaluate(config, inputs, tokenizer, questions, session)
    rows = list(result_rows(evaluation))
    write_part(outputs["results"], EVAL_RESULTS, rows)
    write_part(outputs["predictions"], EVAL_PREDICTIONS, prediction_rows(evaluation, config.compare_by))
    show(rows, config.compare_by, num_available, session)
    return headline(rows, config.compare_by)


def _evaluate(
    config: BenchmarkEvalConfig,
    inputs: Mapping[str, Path],
    tokenizer: Tokenizer,
    questions: list[Question],
    session: StageSession,
) -> Evaluation:
    """One model in memory at a time."""
    shards = TokenShards(inputs["tokens"], "validation")
    answered: dict[tuple[str, str], list[Scores]] = {}
    documents: dict[str, DocumentScores] = {}
    windows: set[int] = set()
    for name, protocols in PROTOCOLS_OF.items():
        if session.should_stop():
            raise StopRequested(f"stopped before scoring {name}", hint="build again to score all models")
        model = _open(name, inputs[name], tokenizer)
        windows.add(model.config.max_position_embeddings)
        documents[name] = _score_text(config, name, model, shards, session)
        for protocol in protocols if questions else ():
            answered[name, protocol] = _score_questions(
                config, name, protocol, model, tokenizer, questions, session
            )
    window = f"windows of {' or '.join(map(str, sorted(windows)))} tokens"
    return Evaluation(questions, answered, documents, window, config.seed)


def _open(name: str, folder: Path, tokenizer: Tokenizer) -> CausalLM:
    device = pick_device().device
    if name in QUANTIZED:
        # Scores are compared, so all of them are made with the same, exact products.
        model: CausalLM = load_quantized(folder, device, fast_decode=False)
    else:
        model = load_model(folder, device, dtype=torch.float32)
    if model.config.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"{name} has a vocabulary of {model.config.vocab_size}, the tokenizer {tokenizer.vocab_size}",
            hint="the two are of different runs: build the chain again from the tokenizer on",
        )
    return model


def _score_text(
    config: BenchmarkEvalConfig, name: str, model: CausalLM, shards: TokenShards, session: StageSession
) -> DocumentScores:
    scores = score_documents(
        model,
        shards,
        documents_within(shards, config.max_validation_bytes),
        context_tokens=model.config.max_position_embeddings,
        on_scored=lambda done, total: session.progress(done, total, "windows", model=name),
    )
    session.log(f"{name}: {scores.bits_per_byte:.4f} bits per byte")
    return scores


def _score_questions(
    config: BenchmarkEvalConfig,
    name: str,
    protocol: str,
    model: CausalLM,
    tokenizer: Tokenizer,
    questions: list[Question],
    session: StageSession,
) -> list[Scores]:
    return score_choices(
        model,
        [PROTOCOLS[protocol](question, tokenizer) for question in questions],
        max_rows=config.max_rows,
        on_scored=lambda done, total: session.progress(
            done, total, "questions", model=name, protocol=protocol
        ),
    )


@contextmanager
def _explained() -> Iterator[None]:
    """The white box knows no stages: its ValueErrors become errors that the frame reports."""
    try:
        yield
    except ValueError as error:
        raise UserError(
            str(error), hint="the settings of [benchmark_eval] are in stages/benchmark_eval/README.md"
        ) from error
