"""The stage as a whole, on fifty small documents."""

from __future__ import annotations

import hashlib
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from data_contracts import CHROMA_PROJECTION, VECTOR_STORE
from stages.runtime.errors import StopRequested, UserError
from stages.runtime.session import StageSession
from stages.vector_store.projection import open_projection
from stages.vector_store.rebuild import rebuild_projection
from stages.vector_store.spec import SPEC
from stages.whitebox.bm25 import split_terms
from stages.whitebox.search import HybridIndex

Build = Callable[..., Any]


def rows_of(path: Path) -> list[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        return file.read().to_pylist()


def digest(folder: Path) -> str:
    parts = [path.name.encode() + path.read_bytes() for path in sorted(folder.iterdir())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_both_parts_keep_their_contracts(built: Any) -> None:
    assert VECTOR_STORE.check(built.outputs["store"]) == []
    assert CHROMA_PROJECTION.check(built.outputs["chroma"]) == []


def test_chunks_are_slices_of_their_documents(built: Any) -> None:
    documents = {row["doc_id"]: row for row in rows_of(built.inputs["documents"] / "part-00000.parquet")}
    covered: dict[str, set[int]] = {doc_id: set() for doc_id in documents}
    for chunk in rows_of(built.store / "chunks.parquet"):
        document = documents[chunk["doc_id"]]
        assert chunk["text"] == document["text"][chunk["char_start"] : chunk["char_end"]]
        assert chunk["title"] == document["title"]
        assert 0 < chunk["num_tokens"] <= 96
        covered[chunk["doc_id"]].update(range(chunk["char_start"], chunk["char_end"]))
    for doc_id, places in covered.items():
        text = documents[doc_id]["text"]
        assert all(char.isspace() or place in places for place, char in enumerate(text)), doc_id


def test_postings_vectors_and_chunks_are_of_one_piece(built: Any) -> None:
    chunks = rows_of(built.store / "chunks.parquet")
    vectors = load_file(built.store / "vectors.safetensors")["vectors"]
    assert vectors.shape == (len(chunks), 32) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    index = HybridIndex.from_folder(built.store)
    counts: dict[tuple[str, int], int] = {
        (row["term"], row["row"]): row["count"] for row in rows_of(built.store / "postings.parquet")
    }
    terms = list(index.bm25.terms)
    stored = {
        (terms[term], int(row)): int(count)
        for term in range(len(terms))
        for row, count in zip(*(a[index.bm25.offsets_V1[term] : index.bm25.offsets_V1[term + 1]]
                                for a in (index.bm25.rows_P, index.bm25.counts_P)), strict=True)
    }  # fmt: skip
    assert counts == stored
    for row, chunk in enumerate(chunks):
        lines = [chunk["title"]] * 2 + [" > ".join(dict.fromkeys([chunk["title"], *chunk["heading_path"]]))]
        indexed = "".join(f"{line}\n" for line in lines if line) + chunk["text"]
        length = len(split_terms(indexed))
        assert (
            sum(count for (_, r), count in counts.items() if r == row) == length == index.bm25.lengths_N[row]
        )
        np.testing.assert_allclose(index.embed([indexed])[0], vectors[row], atol=1e-5)


def test_the_same_inputs_give_the_same_bytes(built: Any, build: Build) -> None:
    assert digest(build().store) == digest(built.store)
    assert digest(build(seed=1).store) != digest(built.store)


def test_figures_are_those_of_the_table(built: Any) -> None:
    table = built.named("table", "retrieval_quality")
    overall = {row[0]: row for row in table["rows"] if row[1] == "all"}
    assert list(overall) == ["bm25", "dense", "fused"]
    for leg, row in overall.items():
        assert built.metrics[f"ndcg_at_10_{leg}"] == pytest.approx(row[3], abs=1e-4)
        assert built.metrics[f"recall_at_10_{leg}"] == pytest.approx(row[6], abs=1e-4)
        assert row[4] <= row[3] <= row[5] and row[7] <= row[6] <= row[8]
        assert row[5] - row[4] > 0.2  # six questions cannot claim more
    fusion = json.loads((built.store / "fusion.json").read_text(encoding="utf-8"))
    assert fusion["dense_weight"] == built.metrics["dense_weight"] == overall["fused"][2]
    dev = fusion["dev_ndcg_at_10_of_weight"]
    assert dev[f"{fusion['dense_weight']:.2f}"] >= max(dev["0.00"], dev["1.00"])
    assert built.metrics["recall_at_10_vs_exact"] >= 0.98
    assert all(math.isfinite(value) for value in built.metrics.values())


def test_everything_is_shown(built: Any) -> None:
    kinds = {(event["event"], event.get("name", event.get("unit"))) for event in built.events}
    assert {("table", name) for name in ("chunks", "retrieval_quality", "chroma")} <= kinds
    assert {("chart", "retrieval_quality"), ("chart", "fusion_weight")} <= kinds
    units = {"documents", "chunks", "steps", "questions", "vectors"}
    assert {("progress", unit) for unit in units} <= kinds
    bars = built.named("chart", "retrieval_quality")
    assert bars["kind"] == "bar" and len(bars["series"]["nDCG@10"][0]) == 4
    searches = [event for event in built.events if event["event"] == "sample"]
    assert searches and all(event["kind"] == "search" and event["text"] for event in searches)


def test_questions_and_their_judgements(built: Any) -> None:
    documents = {row["doc_id"]: row for row in rows_of(built.inputs["documents"] / "part-00000.parquet")}
    chunks = {row["chunk_id"]: row for row in rows_of(built.store / "chunks.parquet")}
    qrels = rows_of(built.store / "qrels.parquet")
    questions = {row["query_id"]: row for row in qrels}
    splits = [row["split"] for row in questions.values()]
    assert splits.count("dev") == splits.count("test") == 6
    for row in qrels:
        doc_id, start, end, kind = row["query_id"].split(":")
        sentence = documents[doc_id]["text"][int(start) : int(end)]
        assert row["query"].endswith(" ".join(sentence.split()))
        assert (kind == "named") == (row["query"] != " ".join(sentence.split()))
        assert documents[doc_id]["title"] not in row["query"]
        assert chunks[row["chunk_id"]]["doc_id"] == row["doc_id"] == doc_id


def test_the_evaluation_never_sees_the_sentence_it_asks_with(build: Build) -> None:
    """A question of words that stand nowhere else finds nothing once its sentence is cut out."""
    number_words = ["alpha", "bravo", "delta", "gamma", "kappa", "sigma", "theta", "omega"]
    rest = "Nothing else is said here about any of it, and every page ends with these very words."
    rows = [
        {
            "doc_id": f"d{n}", "source": "s", "title": "", "kind": "text", "language": "en",
            "split": "validation" if n < 8 else "train", "num_bytes": 0,
            "text": f"{word} {word}x {word}y {word}z {word}q.\n\n{rest}",
        }
        for n, word in enumerate([*number_words, *(f"{w}{w}" for w in number_words)])
    ]  # fmt: skip
    built = build(documents=rows, num_questions=8)
    assert built.metrics["num_test_questions"] == 4
    assert built.metrics["ndcg_at_10_bm25"] == built.metrics["recall_at_10_bm25"] == 0
    # What ships is the whole text: there the same words find it.
    assert HybridIndex.from_folder(built.store).bm25.scores("kappa kappax").argmax() == 4


def test_the_store_answers_questions(built: Any) -> None:
    index = HybridIndex.from_folder(built.store)
    assert index.search("workshop.kiln.brake")[0].title == "workshop.kiln.brake"
    assert index.search("守塔人敲响铜钟", k=1)[0].title == "灯塔"


def test_the_projection_holds_the_stores_vectors_and_can_be_rebuilt(built: Any, tmp_path: Path) -> None:
    index = HybridIndex.from_folder(built.store)
    again = rebuild_projection(built.store, tmp_path / "again")
    assert again.num_vectors == len(index) == built.metrics["num_chunks"]
    ids = [row["chunk_id"] for row in rows_of(built.store / "chunks.parquet")]
    for folder in (built.outputs["chroma"], tmp_path / "again"):
        with open_projection(folder) as opened:
            found = opened.query(index.vectors_NxD[[0, 5]], k=3)
            assert ids[0] in found[0] and ids[5] in found[1]
            assert opened.collection.get(ids=[ids[5]])["metadatas"][0]["title"].startswith("workshop.")


def test_rebuilding_from_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"search_index\.safetensors is missing"):
        rebuild_projection(tmp_path, tmp_path / "out")


def test_without_questions_bm25_ships_unmeasured(build: Build) -> None:
    built = build(num_questions=0, training_steps=2)
    assert built.metrics["num_test_questions"] == built.metrics["dense_weight"] == 0
    assert "ndcg_at_10_fused" not in built.metrics
    warnings = [e["message"] for e in built.events if e["event"] == "log" and e["level"] == "warning"]
    assert warnings == ["there is no question to measure with: BM25 alone ships, unmeasured"]


def test_two_documents_are_enough_to_run(build: Build) -> None:
    documents = [
        {
            "doc_id": name, "source": "s", "title": name, "kind": "text", "language": "en",
            "split": split, "num_bytes": 0, "text": f"The {name} is made of wood. Paint it every year.",
        }
        for name, split in (("gate", "train"), ("fence", "validation"))
    ]  # fmt: skip
    built = build(documents=documents, training_steps=2)
    assert built.metrics["num_chunks"] == 2
    assert any("fewer than two documents" in e.get("message", "") for e in built.events)
    assert HybridIndex.from_folder(built.store).search("gate")[0].title == "gate"


def test_documents_without_text_are_the_users_mistake(build: Build) -> None:
    row = {"doc_id": "a", "source": "s", "title": "t", "kind": "text", "language": "en", "split": "train"}
    with pytest.raises(UserError, match="none of the 1 documents in 1 files holds any text"):
        build(documents=[row | {"num_bytes": 0, "text": " \n"}])


def test_a_stop_request_is_honoured(build: Build) -> None:
    def stop(session: StageSession) -> None:
        session.should_stop()
        session._on_signal(signal.SIGTERM, None)

    with pytest.raises(StopRequested, match="asked to stop"):
        build(prepare=stop)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"overlap_tokens": 200}, "overlap_tokens 200 is more than half of chunk_tokens 256"),
        ({"chunk_tokes": 64}, "did you mean 'chunk_tokens'"),
        ({"min_recall_at_10": 2}, "less than or equal to 1"),
    ],
)
def test_settings_that_cannot_be(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SPEC.parse_config(raw)


@pytest.mark.parametrize("name", ["search_index.safetensors", "tokenizer.*", "fusion.json", "chunks.parquet"])
def test_a_store_without_one_of_its_files_breaks_the_contract(built: Any, tmp_path: Path, name: str) -> None:
    for path in built.store.iterdir():
        if not path.match(name):
            (tmp_path / path.name).symlink_to(path)
    assert [violation.file for violation in VECTOR_STORE.check(tmp_path)] == [name]
