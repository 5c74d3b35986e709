"""Log-probabilities of answers, and how a resumed run finds those of the reference.

Shapes: P pairs, B rows of a batch (all chosen, then all rejected), T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.dpo.pairs import Pairs, batch_of
from stages.whitebox.losses import sequence_log_probs
from stages.whitebox.model import CausalLM
from stages.whitebox.shared_beginnings import row_log_probs


def answer_log_probs(model: CausalLM, batch: dict[str, Tensor]) -> Tensor:
    """Sum of the log-probabilities of each row's answer tokens, logp_B; the prompt does not count."""
    weight_VxD = model.output_weight()
    if weight_VxD.device.type == "cpu":
        return row_log_probs(model, batch["ids"], batch["targets"])
    # Rows are padded on the right, and attention looks only to the left: padding changes nothing.
    return sequence_log_probs(model.hidden_states(batch["ids"]), weight_VxD, batch["targets"])


@torch.no_grad()
def log_probs_of(
    model: CausalLM,
    pairs: Pairs,
    batch_pairs: int,
    pad_id: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """logp_2xP: of the chosen answers and of the rejected ones, in the order of `pairs`."""
    device = model.output_weight().device
    by_length = sorted(range(len(pairs)), key=lambda i: (len(pairs.chosen[i].ids), i))
    logp_2xP = torch.zeros(2, len(pairs))
    for start in range(0, len(pairs), batch_pairs):
        picked = by_length[start : start + batch_pairs]
        batch = {name: tensor.to(device) for name, tensor in batch_of(pairs, picked, pad_id).items()}
        logp_2xP[:, picked] = answer_log_probs(model, batch).view(2, -1).cpu()
        on_progress(start + len(picked))
    return logp_2xP


def stored_log_probs(path: Path, shape: tuple[int, ...], compute: Callable[[], Tensor]) -> Tensor:
    """What `compute` gives, kept in `path`: a resumed run must see the very same reference."""
    try:
        stored = load_file(path)["log_probs"]
        if stored.shape == shape:
            return stored
    except (OSError, SafetensorError, KeyError):
        pass  # not there yet, or not whole: it is computed
    log_probs = compute()
    unfinished = path.with_suffix(".unfinished")
    save_file({"log_probs": log_probs}, unfinished)
    unfinished.replace(path)
    return log_probs
