"""How well a model does on held-out conversations: loss, and turns that it would write exactly.

A turn counts as exact when every token of it is the most likely one given the true tokens before. That is the
same as saying that greedy decoding writes this very turn, and costs one pass instead of one per token.

Shapes: B batch, T tokens, D width, V vocabulary, M targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.sft.row_batches import RowBatches
from stages.whitebox.evaluation import EVALUATION_TOKENS
from stages.whitebox.losses import CHUNK_TOKENS, IGNORED, cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.packing import PackedRows


@dataclass
class ChatScore:
    """Sums over held-out conversations."""

    nats: float = 0.0
    num_targets: int = 0
    num_calls: int = 0
    num_exact_calls: int = 0
    num_answers: int = 0
    num_exact_answers: int = 0

    @property
    def loss(self) -> float:
        """Nats per target token."""
        return self.nats / max(1, self.num_targets)

    @property
    def exact_calls(self) -> float:
        """Share of turns with a tool call that are exact; 0 where there are none."""
        return self.num_exact_calls / max(1, self.num_calls)

    @property
    def exact_answers(self) -> float:
        """Share of the other turns that are exact."""
        return self.num_exact_answers / max(1, self.num_answers)


@torch.no_grad()
def score_chats(model: CausalLM, rows: PackedRows, call_id: int) -> ChatScore:
    """Score every conversation of `rows`; a turn that holds the token `call_id` is a tool call."""
    score = ChatScore()
    batches = RowBatches(rows, 1, seed=0)
    device = model.output_weight().device
    rows_at_once = max(1, EVALUATION_TOKENS // rows.ids_RxT.shape[1])
    for start in range(0, rows.num_rows, rows_at_once):
        picked = list(range(start, min(start + rows_at_once, rows.num_rows)))
        batch = {name: tensor.to(device) for name, tensor in batches.batch_of(picked).items()}
        h_BxTxD = model.hidden_states(batch["ids"], batch["positions"], batch["document_ids"])
        nats, num_targets = cross_entropy_sum(h_BxTxD, model.output_weight(), batch["targets"])
        score.nats += float(nats)
        score.num_targets += num_targets
        hits_BxT = most_likely(h_BxTxD, model.output_weight(), batch["targets"])
        _count_turns(score, batch["targets"].cpu().numpy(), hits_BxT.cpu().numpy(), call_id)
    return score


def most_likely(h_BxTxD: Tensor, weight_VxD: Tensor, targets_BxT: Tensor) -> Tensor:
    """Whether each target is the most likely token: BxT, False where nothing is to be predicted."""
    counted_BxT = targets_BxT != IGNORED
    h_MxD, targets_M = h_BxTxD[counted_BxT], targets_BxT[counted_BxT]
    hits_M = [
        (h_MxD[start : start + CHUNK_TOKENS] @ weight_VxD.T).argmax(dim=-1)
        == targets_M[start : start + CHUNK_TOKENS]
        for start in range(0, len(targets_M), CHUNK_TOKENS)
    ]
    empty_BxT = torch.zeros_like(counted_BxT)
    return empty_BxT.masked_scatter(counted_BxT, torch.cat(hits_M)) if hits_M else empty_BxT


def _count_turns(score: ChatScore, targets_BxT: np.ndarray, hits_BxT: np.ndarray, call_id: int) -> None:
    """A turn is a run of targets without a gap: the newline behind <|im_end|> is none."""
    for targets_T, hits_T in zip(targets_BxT, hits_BxT, strict=True):
        is_target_T = targets_T != IGNORED
        begins_T = is_target_T & ~np.concatenate([[False], is_target_T[:-1]])
        turn_T = np.cumsum(begins_T)[is_target_T] - 1
        num_turns = int(begins_T.sum())
        wrong = np.bincount(turn_T, ~hits_T[is_target_T], num_turns) > 0
        is_call = np.bincount(turn_T, targets_T[is_target_T] == call_id, num_turns) > 0
        score.num_calls += int(is_call.sum())
        score.num_exact_calls += int((is_call & ~wrong).sum())
        score.num_answers += int((~is_call).sum())
        score.num_exact_answers += int((~is_call & ~wrong).sum())
