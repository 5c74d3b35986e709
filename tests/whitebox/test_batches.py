"""Shards are read as they are, and an epoch of rows holds every token once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.whitebox.batches import (
    PackedBatches,
    TokenShards,
    positions_within,
    unigram_entropy,
    windows_of,
)
from stages.whitebox.losses import IGNORED

BOS, EOS = 1, 2
Write = Callable[..., None]


def test_documents_come_back_across_files(tmp_path: Path, write_shards: Write) -> None:
    bodies = [[10, 11], [12], [], [13, 14, 15], [16]]
    write_shards(tmp_path, "train", bodies[:2])
    write_shards(tmp_path, "train", bodies[2:], number=1)
    shards = TokenShards(tmp_path, "train")
    assert [shards.document(index).tolist() for index in range(5)] == [[BOS, *b, EOS] for b in bodies]
    assert shards.num_bytes.tolist() == [4, 2, 0, 6, 2]
    assert (shards.num_documents, shards.num_tokens, shards.bos_id) == (5, 17, BOS)
    assert shards.read(3, 9).tolist() == [EOS, BOS, 12, EOS, BOS, EOS]
    assert shards.tokens.tolist() == shards.read(0, 17).tolist()


def test_one_file_stays_memory_mapped(counting_shards: Path) -> None:
    assert isinstance(TokenShards(counting_shards, "train").tokens, np.memmap)


def test_a_missing_split_and_damaged_files_are_named(tmp_path: Path, write_shards: Write) -> None:
    with pytest.raises(ValueError, match="has no train-"):
        TokenShards(tmp_path, "train")
    write_shards(tmp_path, "train", [[10, 11, 12]])
    path = tmp_path / "train-00000.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="cut short"):
        TokenShards(tmp_path, "train")
    path.write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(ValueError, match="no safetensors file"):
        TokenShards(tmp_path, "train")


def test_documents_without_bos_are_refused(tmp_path: Path, write_shards: Write) -> None:
    write_shards(tmp_path, "train", [[10], [11]])
    path = tmp_path / "train-00000.safetensors"
    raw = bytearray(path.read_bytes())
    tokens_at = len(raw) - 6 * 2
    position = raw.find(np.array([BOS, 10, EOS, BOS], dtype=np.uint16).tobytes())
    assert 0 < position <= tokens_at
    raw[position + 6] = 9
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="different ids, expected BOS"):
        TokenShards(tmp_path, "train")


def targets_of_an_epoch(batches: PackedBatches) -> Counter[int]:
    """How often each id is a target."""
    seen: Counter[int] = Counter()
    for _ in range(batches.rows_per_epoch):
        targets = batches.next_batch()["targets"]
        seen.update(targets[targets != IGNORED].tolist())
    return seen


def test_an_epoch_has_every_token_once_as_a_target(counting_shards: Path) -> None:
    shards = TokenShards(counting_shards, "train")
    batches = PackedBatches(shards, batch_size=1, context_tokens=16, seed=3)
    seen = targets_of_an_epoch(batches)
    expected = Counter(shards.tokens.tolist())
    del expected[BOS]
    missing = expected - seen
    assert not seen - expected
    assert missing.total() < 16


def test_inputs_are_bos_and_the_targets_moved_by_one(counting_shards: Path) -> None:
    batch = PackedBatches(TokenShards(counting_shards, "train"), 4, 24, seed=0).next_batch()
    assert batch["ids"].shape == batch["targets"].shape == (4, 24)
    assert (batch["ids"][:, 0] == BOS).all()
    followers, targets = batch["ids"][:, 1:], batch["targets"][:, :-1]
    assert torch.equal(targets == IGNORED, followers == BOS)
    assert torch.equal(targets[targets != IGNORED], followers[targets != IGNORED])


def test_epochs_differ_and_seeds_differ(counting_shards: Path) -> None:
    shards = TokenShards(counting_shards, "train")

    def epochs(seed: int, count: int) -> list[list[int]]:
        batches = PackedBatches(shards, 1, 16, seed)
        rows = batches.rows_per_epoch
        return [
            torch.cat([batches.next_batch()["ids"] for _ in range(rows)]).flatten().tolist()
            for _ in range(count)
        ]

    first, second = epochs(0, 2)
    assert first != second
    assert epochs(1, 1)[0] != first
    assert epochs(0, 1)[0] == first


@pytest.mark.parametrize("steps_before", [0, 3, 11])
def test_a_saved_place_gives_the_same_batches(counting_shards: Path, steps_before: int) -> None:
    shards = TokenShards(counting_shards, "train")
    batches, resumed = (PackedBatches(shards, 5, 32, seed=0) for _ in range(2))
    for _ in range(steps_before):
        batches.next_batch()
    resumed.load_state_dict(batches.state_dict())
    for _ in range(12):
        assert torch.equal(batches.next_batch()["ids"], resumed.next_batch()["ids"])


def test_a_place_in_other_data_is_refused(counting_shards: Path) -> None:
    shards = TokenShards(counting_shards, "train")
    state = PackedBatches(shards, 2, 16, seed=0).state_dict()
    with pytest.raises(ValueError, match="rows_per_epoch"):
        PackedBatches(shards, 2, 32, seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match="seed 0"):
        PackedBatches(shards, 2, 16, seed=1).load_state_dict(state)


def test_separate_documents_restart_positions(counting_shards: Path) -> None:
    shards = TokenShards(counting_shards, "train")
    batch = PackedBatches(shards, 3, 32, seed=0, separate_documents=True).next_batch()
    starts = batch["ids"] == BOS
    assert (batch["positions"][starts] == 0).all()
    assert (batch["positions"] == 0).sum() == starts.sum()
    assert torch.equal(batch["document_ids"].diff(dim=1) > 0, starts[:, 1:])


def test_positions_within_documents() -> None:
    ids = torch.tensor([[5, 5, 5, 2, 2, 7], [1, 1, 1, 1, 1, 1]])
    assert positions_within(ids).tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]


def test_too_little_text_says_what_to_do(tmp_path: Path, write_shards: Write) -> None:
    write_shards(tmp_path, "train", [[10, 11, 12]])
    with pytest.raises(
        ValueError, match=r"5 tokens, fewer than one row of 8; give .* smaller context_tokens"
    ):
        PackedBatches(TokenShards(tmp_path, "train"), 1, 8, seed=0)


def test_unigram_entropy_leaves_bos_out(tmp_path: Path, write_shards: Write) -> None:
    write_shards(tmp_path, "train", [[10, 11], [10, 11]])  # 10, 11 and EOS: twice each
    assert unigram_entropy(TokenShards(tmp_path, "train")) == pytest.approx(np.log(3))


def test_windows_cover_a_document_without_its_ends() -> None:
    document = np.array([BOS, *range(10, 17), EOS])
    assert [window.tolist() for window in windows_of(document, 3)] == [[10, 11, 12], [13, 14, 15], [16]]
    assert list(windows_of(np.array([BOS, EOS]), 3)) == []


def test_many_files_are_read_without_a_copy_of_the_whole(tmp_path: Path, write_shards: Write) -> None:
    bodies = [[10 + number] * number for number in range(12)]
    for number, body in enumerate(bodies):
        write_shards(tmp_path, "train", [body], number=number)
    shards = TokenShards(tmp_path, "train")
    assert all(isinstance(part, np.memmap) for part in shards._parts)
    whole = np.concatenate([[BOS, *body, EOS] for body in bodies])
    for start in range(len(whole)):
        for stop in range(start, len(whole) + 1, 7):
            assert shards.read(start, stop).tolist() == whole[start:stop].tolist()


def test_best_fit_rows_hold_every_token_once_and_cut_only_what_is_too_long(
    tmp_path: Path, write_shards: Write
) -> None:
    bodies = [list(range(10, 10 + size)) for size in (3, 14, 40, 9, 5, 1, 14, 30, 2, 0)]
    write_shards(tmp_path, "train", bodies)
    batches = PackedBatches(TokenShards(tmp_path, "train"), 1, 16, seed=0, best_fit=True)
    rows_per_epoch = batches.rows_per_epoch
    for _ in range(3):
        rows = torch.cat([batches.next_batch()["targets"] for _ in range(rows_per_epoch)])
        assert batches.rows_per_epoch == rows_per_epoch
        texts = ",".join(map(str, rows.flatten().tolist())).split(f"{IGNORED}")
        for body in bodies:
            if len(body) + 2 <= 16:
                assert ",".join(["", *map(str, [*body, EOS])]) in [text.rstrip(",") for text in texts]


def test_best_fit_targets_are_the_documents(counting_shards: Path) -> None:
    shards = TokenShards(counting_shards, "train")
    batches = PackedBatches(shards, 1, 16, seed=3, best_fit=True)
    seen = targets_of_an_epoch(batches)
    expected = Counter(shards.tokens.tolist())
    del expected[BOS]
    assert seen == expected


@pytest.mark.parametrize("best_fit", [False, True])
def test_an_id_beyond_the_vocabulary_is_named_with_its_document(
    tmp_path: Path, write_shards: Write, best_fit: bool
) -> None:
    write_shards(tmp_path, "train", [[10] * 30, [11] * 30, [12, 60, 61, 12] + [13] * 26])
    batches = PackedBatches(TokenShards(tmp_path, "train"), 2, 16, seed=0, best_fit=best_fit)
    wanted = "train document 2 has the id 61, the vocabulary ends at 60: .*glassworks rerun tokenizer"
    with pytest.raises(ValueError, match=wanted):
        for _ in range(batches.rows_per_epoch):
            batches.next_batch()
    with pytest.raises(ValueError, match=wanted):
        unigram_entropy(batches.shards)


def test_a_shard_cut_anywhere_is_named(tmp_path: Path, write_shards: Write) -> None:
    write_shards(tmp_path, "train", [[10] * 30])
    (path,) = tmp_path.glob("train-*")
    whole = path.read_bytes()
    for length in (0, 5, 8, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=path.name):
            TokenShards(tmp_path, "train")
    path.write_bytes(whole)
    assert TokenShards(tmp_path, "train").num_tokens == 32
