"""The lines to judge a loss by are measured on the same text."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest

from stages.pretrain.references import documents_within, measure_references
from stages.whitebox.batches import TokenShards
from stages.whitebox.tokenizer import Tokenizer


def test_references_of_the_held_out_text(inputs: dict[str, Path]) -> None:
    tokenizer = Tokenizer.from_folder(inputs["tokenizer"])
    train, validation = (TokenShards(inputs["tokens"], split) for split in ("train", "validation"))
    found = measure_references(train, validation, tokenizer, max_tokens=10**9)
    texts = [tokenizer.decode(validation.document(i).tolist()) for i in range(validation.num_documents)]
    raw = "\n".join(texts).encode()
    assert found.uniform_loss == pytest.approx(math.log(320))
    assert 0 < found.unigram_loss < found.uniform_loss
    assert found.gzip_bits_per_byte == pytest.approx(8 * len(gzip.compress(raw, 9)) / len(raw))
    assert 0 < found.xz_bits_per_byte < 8
    assert [row[0] for row in found.rows()][-2:] == ["gzip -9", "xz -9"]


def test_documents_within_a_number_of_tokens(inputs: dict[str, Path]) -> None:
    shards = TokenShards(inputs["tokens"], "validation")
    assert documents_within(shards, 1) == 1
    assert documents_within(shards, shards.num_tokens // 2) == shards.num_documents // 2
    assert documents_within(shards, 10**9) == shards.num_documents
