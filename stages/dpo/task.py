"""What the method trains on: its batches, with precomputed references where it has them, and its loss.

Shapes: P pairs, R single answers, N answer tokens of the held-out pairs.
"""

from __future__ import annotations

from torch import Tensor

from stages.dpo.objectives import WITHOUT_REFERENCE, KtoObjective, PairObjective
from stages.dpo.pairs import PairBatches, Pairs
from stages.dpo.preference import log_probs_of, stored_log_probs
from stages.dpo.single_answers import AnswerBatches, answers_of
from stages.dpo.watch import Watch
from stages.whitebox.trainer import LossFn, compute_in


def training_task(pairs: Pairs, watch: Watch) -> tuple[PairBatches, LossFn]:
    """Batches and loss; the model of `watch` is still the reference. One model is in memory, here and
    later."""
    config, pad_id = watch.config, watch.tokenizer.pad_id
    if config.method == "kto":
        answers = answers_of(pairs)
        both = Pairs(chosen=answers.completions, rejected=answers.mismatched)
        micro = 2 * config.micro_batch_pairs
        reference_2xR = _reference(both, watch)
        batches = AnswerBatches(answers, reference_2xR, 2 * config.batch_pairs, pad_id, config.seed, micro)
        return batches, KtoObjective(config, micro)
    reference_2xP = None if config.method in WITHOUT_REFERENCE else _reference(pairs, watch)
    micro = config.micro_batch_pairs
    return PairBatches(pairs, reference_2xP, config.batch_pairs, pad_id, config.seed, micro), PairObjective(
        config
    )


def _reference(pairs: Pairs, watch: Watch) -> Tensor:
    """logp_2xP of the training pairs, in the type that the model is trained in."""

    def compute() -> Tensor:
        with compute_in(watch.compute_dtype, watch.model.output_weight().device):
            return log_probs_of(
                watch.model,
                pairs,
                watch.config.micro_batch_pairs,
                watch.tokenizer.pad_id,
                lambda done: watch.session.progress(done, len(pairs), "train pairs"),
            )

    return stored_log_probs(watch.session.work_dir / "reference-train.safetensors", (2, len(pairs)), compute)


def held_out_reference(watch: Watch) -> Tensor:
    """logp_N of the held-out answers' tokens: also where a method has no reference, to tell how far it
    went."""
    lengths = [len(c.ids) - c.start for c in (*watch.held_out.chosen, *watch.held_out.rejected)]
    path = watch.session.work_dir / "reference-validation.safetensors"
    return stored_log_probs(path, (sum(lengths),), watch.held_out_log_probs)
