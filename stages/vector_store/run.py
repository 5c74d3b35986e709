"""The vector store as a story: cut, hold questions out, train, index, measure, choose the mix, project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_contracts.tables import part_files, read_rows
from stages.runtime.errors import StopRequested, UserError
from stages.runtime.session import StageSession
from stages.vector_store.chunking import Chunker
from stages.vector_store.corpus import Corpus, cut_corpus
from stages.vector_store.evaluation import Evaluation, evaluate
from stages.vector_store.indexing import IndexedTexts, Legs
from stages.vector_store.pairs import ChunkPairs, training_chunks
from stages.vector_store.projection import HnswSettings
from stages.vector_store.questions import HeldOut, Question, hold_out
from stages.vector_store.rebuild import rebuild_projection
from stages.vector_store.report import headline, show_corpus, show_evaluation, show_projection, show_searches
from stages.vector_store.spec import VectorStoreConfig
from stages.vector_store.store_files import write_chunks, write_fusion, write_qrels, write_search
from stages.whitebox.device import fix_threads
from stages.whitebox.search import EMBEDDER_FILE, HybridIndex
from stages.whitebox.static_embedder import (
    ContrastiveSettings,
    StaticEmbedder,
    initial_embedder,
    train_embedder,
)
from stages.whitebox.tokenizer import Tokenizer


def run(
    config: VectorStoreConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path], session: StageSession
) -> dict[str, float]:
    """Build the store and its projection; returns sizes and how well the legs and their mix find."""
    fix_threads(config.num_threads)
    store = outputs["store"]
    tokenizer = Tokenizer.from_folder(inputs["tokenizer"])
    corpus = _cut(config, inputs["documents"], tokenizer, session)
    held_out = hold_out(corpus.documents, config.num_questions)
    show_corpus(corpus, held_out, session)
    write_chunks(corpus, store)

    texts = _read(corpus, tokenizer, session)
    embedder = _train(config, corpus, held_out, texts, session)
    embedder.save(store / EMBEDDER_FILE)
    # From the file, not from memory: chunks and later queries must see the same rounding of the weights.
    legs = texts.legs(StaticEmbedder.load(store / EMBEDDER_FILE), config.bm25_k1, config.bm25_b)
    write_search(corpus, legs.bm25, legs.vectors_NxD, inputs["tokenizer"], store)
    write_qrels(corpus, held_out.questions, store)

    evaluation = _evaluate(corpus, held_out.questions, texts, legs, session)
    write_fusion(evaluation, legs.bm25, store)
    show_evaluation(evaluation, session)
    show_searches(HybridIndex.from_folder(store), held_out.questions, session)

    def wrote(done: int, total: int) -> None:
        _stop_if_asked(session)
        session.progress(done, total, "vectors")

    hnsw = HnswSettings(config.hnsw_ef_construction, config.hnsw_ef_search, config.hnsw_max_neighbors)
    seal = rebuild_projection(store, outputs["chroma"], hnsw, config.min_recall_at_10, wrote)
    show_projection(seal, session)
    return headline(corpus, held_out, evaluation, seal)


def _cut(config: VectorStoreConfig, documents: Path, tokenizer: Tokenizer, session: StageSession) -> Corpus:
    total = len(list(read_rows(documents, ["doc_id"])))

    def on_document(done: int) -> None:
        _stop_if_asked(session)
        session.progress(done, total, "documents")

    chunker = Chunker(tokenizer, config.chunk_tokens, config.overlap_tokens)
    columns = ["doc_id", "title", "split", "text"]
    corpus = cut_corpus(read_rows(documents, columns), chunker, on_document)
    if not corpus.chunks:
        raise UserError(
            f"none of the {total} documents in {len(part_files(documents))} files holds any text",
            hint="give corpus_prep more text: glassworks build --source FILE",
        )
    return corpus


def _read(corpus: Corpus, tokenizer: Tokenizer, session: StageSession) -> IndexedTexts:
    def on_chunk(done: int) -> None:
        _stop_if_asked(session)
        session.progress(done, len(corpus.chunks), "chunks")

    return IndexedTexts.of(corpus, tokenizer, on_chunk)


def _train(
    config: VectorStoreConfig,
    corpus: Corpus,
    held_out: HeldOut,
    texts: IndexedTexts,
    session: StageSession,
) -> StaticEmbedder:
    embedder = initial_embedder(texts.token_counts(), config.dimensions, config.seed)
    chunks = training_chunks(corpus, held_out.documents, texts.tokenizer, lambda: _stop_if_asked(session))
    if len({chunk.document for chunk in chunks}) < 2:
        session.warn("fewer than two documents to train the embedder on: its vectors stay random")
        return embedder
    batch_size = min(config.batch_size, len(chunks))
    steps = config.training_steps
    session.log(f"training the embedder: {steps} steps of {batch_size} pairs from {len(chunks):,} chunks")

    def on_step(step: int, loss: float) -> None:
        _stop_if_asked(session)
        session.progress(step, steps, "steps", loss=loss)
        if step % max(1, steps // 100) == 0:
            session.metrics(step, train_loss=loss)

    settings = ContrastiveSettings(steps, batch_size, config.learning_rate, config.temperature, config.seed)
    train_embedder(embedder, ChunkPairs(chunks), settings, on_step)
    return embedder


def _evaluate(
    corpus: Corpus, questions: Sequence[Question], texts: IndexedTexts, legs: Legs, session: StageSession
) -> Evaluation:
    def on_question(done: int) -> None:
        _stop_if_asked(session)
        session.progress(done, len(questions), "questions")

    return evaluate(corpus, questions, texts.legs_without(legs, corpus, questions), on_question)


def _stop_if_asked(session: StageSession) -> None:
    if session.should_stop():
        raise StopRequested("vector_store was asked to stop", hint="build again; the stage starts over")
