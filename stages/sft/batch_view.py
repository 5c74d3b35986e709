"""The first batch as a person can read it: what is trained on, what is only read, and where it is cut."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from stages.runtime.session import StageSession
from stages.sft.row_batches import RowBatches
from stages.whitebox.losses import IGNORED
from stages.whitebox.packing import PackedRows
from stages.whitebox.reply import spell
from stages.whitebox.tokenizer import Tokenizer

SHOWN_ROWS = 6
SHOWN_TOKENS = 4096
"""A report is read by people: of long rows fewer are shown."""

Stretch = dict[str, Any]


def write_preview(
    rows: PackedRows, batches: RowBatches, tokenizer: Tokenizer, folder: Path, session: StageSession
) -> None:
    """The first batch as tensors for `glassworks show`, and in words for the report."""
    picked = RowBatches(rows, batches.batch_size, batches.seed).next_rows()
    session.batch(stretches_of(rows, picked, tokenizer), "The first batch of the fine-tuning")
    tensors = {
        "ids": rows.ids_RxT[picked],
        "labels": rows.labels_RxT[picked],
        "document_ids": rows.document_ids_RxT[picked],
        "ends_cut": rows.ends_cut_RxT[picked].astype(np.uint8),
    }
    save_file(tensors, folder / "preview.safetensors")
    (folder / "preview.safetensors").chmod(0o644)


def stretches_of(rows: PackedRows, picked: list[int], tokenizer: Tokenizer) -> list[list[Stretch]]:
    """The first of these rows as `StageSession.batch` takes them; at least one."""
    most = min(SHOWN_ROWS, max(1, SHOWN_TOKENS // rows.ids_RxT.shape[1]))
    return [list(_of_row(rows, row, tokenizer)) for row in picked[:most]]


def _of_row(rows: PackedRows, row: int, tokenizer: Tokenizer) -> Iterator[Stretch]:
    counts_T = rows.labels_RxT[row] != IGNORED
    weights_T = counts_T if rows.weights_RxT is None else rows.weights_RxT[row] * counts_T
    columns = (rows.ids_RxT[row], weights_T, rows.document_ids_RxT[row], rows.ends_cut_RxT[row])
    tokens = [
        (int(number), float(weight), int(token), bool(is_cut))
        for token, weight, number, is_cut in zip(*columns, strict=True)
        if number
    ]
    for (number, weight), stretch in itertools.groupby(tokens, key=lambda token: token[:2]):
        listed = list(stretch)
        text = spell(tokenizer, [token for _, _, token, _ in listed])
        yield {"text": text, "weight": weight, "conversation": number, "is_cut": listed[-1][3]}
