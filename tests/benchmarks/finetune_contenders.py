"""Who is compared in `sft_speed.py` and `dpo_speed.py`: ours and TRL's trainers, on the same ids and weights.

A contender imports its libraries, says so (`gate.is_ready`), tells the loss of the first examples before any
update (`gate.tell`), and calls `gate.round_is_done` after every pass over the examples until that ends the
process.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

ENDLESS = 10**6
LEARNING_RATE, BETA, CLIP = 1e-5, 0.1, 1.0
CHECKED = 8
"""Examples whose loss everyone tells."""


@dataclass(frozen=True)
class Task:
    """What to train on what."""

    folder: Path
    """Holds `model`, a folder that opens in ours and in transformers, `tokenizer` and `examples.json`."""
    context_tokens: int
    rows: int
    """Of one update: packed rows for SFT, pairs for DPO."""
    threads: int
    dtype: str
    """Of the products; weights, optimizer and loss are in float32 always."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """The same as torch knows it."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    @property
    def examples(self) -> list[dict[str, list[int]]]:
        """SFT: "input_ids" and "labels"; DPO: "prompt_ids", "chosen_ids" and "rejected_ids"."""
        found: list[dict[str, list[int]]] = json.loads((self.folder / "examples.json").read_text())
        return found


class Gate(Protocol):
    """Where a contender waits for its turn."""

    def is_ready(self) -> None:
        """All libraries are imported; from here on memory counts."""
        ...

    def tell(self, values: Mapping[str, float]) -> None:
        """What to compare with the others, before the first update."""
        ...

    def round_is_done(self, passes: float = 1.0) -> None:
        """All examples were trained on once more, or so much of them; returns when the next round may begin."""
        ...


def our_sft(task: Task, gate: Gate) -> None:
    """`stages.whitebox.trainer.train` with the batches and the loss of the sft stage."""
    from stages.sft.row_batches import RowBatches
    from stages.sft.setup import MICRO_BATCH_TOKENS
    from stages.sft.spec import SftConfig
    from stages.sft.training_loss import training_loss
    from stages.whitebox.chat_format import RenderedChat
    from stages.whitebox.checkpoint import load_model
    from stages.whitebox.device import keep_freed_memory
    from stages.whitebox.losses import IGNORED
    from stages.whitebox.packing import pack
    from stages.whitebox.trainer import compute_in, largest_part

    keep_freed_memory()  # as every stage does
    gate.is_ready()
    chats = [
        RenderedChat(each["input_ids"], [label != IGNORED for label in each["labels"]])
        for each in task.examples
    ]
    model = load_model(task.folder / "model", torch.device("cpu"), dtype=torch.float32)
    pad_id = model.config.pad_token_id
    first = RowBatches(pack(chats[:CHECKED], task.context_tokens, pad_id), 1, seed=0)
    loss_fn = training_loss(SftConfig(), teacher=None)
    with torch.no_grad(), compute_in(task.compute_dtype, torch.device("cpu")):
        loss = loss_fn(model, first.batch_of(range(first.rows.num_rows)))
    gate.tell({"loss": float(loss.loss_sum) / loss.num_targets})
    rows = pack(chats, task.context_tokens, pad_id)
    micro_rows = largest_part(task.rows, max(1, MICRO_BATCH_TOKENS["cpu"] // task.context_tokens))
    batches = RowBatches(rows, micro_rows, seed=0)
    updates = -(-rows.num_rows // task.rows)  # the last rows of a pass are filled up from the next
    passes = updates * task.rows / rows.num_rows
    _train_ours(task, model, batches, loss_fn, task.rows // micro_rows, updates, gate, passes)


def our_dpo(task: Task, gate: Gate) -> None:
    """The trainer with the batches and the loss of the dpo stage; references are computed once before."""
    from stages.dpo.objectives import PairObjective
    from stages.dpo.pairs import Completion, PairBatches, Pairs
    from stages.dpo.preference import log_probs_of
    from stages.dpo.spec import DpoConfig
    from stages.whitebox.checkpoint import load_model
    from stages.whitebox.device import keep_freed_memory
    from stages.whitebox.trainer import compute_in

    keep_freed_memory()  # as every stage does
    gate.is_ready()
    pairs = Pairs()
    for each in task.examples:
        start = len(each["prompt_ids"])
        pairs.chosen.append(Completion(each["prompt_ids"] + each["chosen_ids"], start))
        pairs.rejected.append(Completion(each["prompt_ids"] + each["rejected_ids"], start))
    model = load_model(task.folder / "model", torch.device("cpu"), dtype=torch.float32)
    pad_id = model.config.pad_token_id
    with compute_in(task.compute_dtype, torch.device("cpu")):
        reference_2xP = log_probs_of(model, pairs, task.rows, pad_id)
    chosen, rejected = reference_2xP[:, :CHECKED].mean(dim=1).tolist()
    gate.tell({"logps/chosen": chosen, "logps/rejected": rejected})
    batches = PairBatches(pairs, reference_2xP, task.rows, pad_id, seed=0)
    objective = PairObjective(DpoConfig(beta=BETA, sft_term=0))
    _train_ours(task, model, batches, objective, 1, batches.updates_per_epoch, gate)


def _train_ours(
    task: Task,
    model: Any,
    batches: Any,
    loss: Any,
    micro_batches: int,
    updates_per_round: int,
    gate: Gate,
    passes: float = 1.0,
) -> None:
    from stages.whitebox.trainer import TrainerSettings, train

    def on_step(step: int, _values: dict[str, float]) -> None:
        if step % updates_per_round == 0:
            gate.round_is_done(passes)

    settings = TrainerSettings(
        total_steps=ENDLESS,
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        grad_clip=CLIP,
        accumulation_steps=micro_batches,
        compute_dtype=task.compute_dtype,
        evaluate_every_steps=ENDLESS,
    )
    with tempfile.TemporaryDirectory() as folder:
        train(model, batches, loss, settings, checkpoint_dir=Path(folder), on_step=on_step)


def trl_sft(task: Task, gate: Gate, strategy: str = "bfd") -> None:
    """`trl.SFTTrainer` with packing.

    "bfd" keeps conversations apart and lays the rows of a micro batch end to end in one; on a CPU the mask of
    that grows with its square, so it takes one row at a time. "wrapped" cuts anywhere and lets conversations
    see each other, which costs no mask.
    """
    import datasets
    import transformers
    from trl import SFTConfig, SFTTrainer

    _be_silent(datasets, transformers)
    gate.is_ready()
    rows_at_once = 1 if strategy == "bfd" else task.rows
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            _their_model(task, transformers),
            SFTConfig(
                folder,
                packing=True,
                packing_strategy=strategy,
                eval_packing=False,
                max_length=task.context_tokens,
                gradient_accumulation_steps=task.rows // rows_at_once,
                **_their_settings(task, rows_at_once),
            ),
            train_dataset=datasets.Dataset.from_list(task.examples),
            eval_dataset=datasets.Dataset.from_list(task.examples[:CHECKED]),
            processing_class=transformers.AutoTokenizer.from_pretrained(task.folder / "tokenizer"),
        )
        gate.tell({"loss": trainer.evaluate()["eval_loss"]})
        trainer.add_callback(_waits(transformers, gate))
        trainer.train()


def trl_dpo(task: Task, gate: Gate, precomputed: bool = False, grouped: bool = False) -> None:
    """`trl.DPOTrainer`; its packing without padding is switched off in 1.16.

    precomputed: reference log-probabilities once before the training, so that one model is in memory.
    grouped: rows of similar length share a batch; 1.16 refuses its setting for it, so the sampler is given here.
    """
    import datasets
    import transformers
    from trl import DPOConfig, DPOTrainer

    class Prepared(DPOTrainer):  # type: ignore[misc]
        """Takes ids as they are: everyone has the same."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any) -> Any:
            if not grouped:
                return super()._get_train_sampler()
            lengths = [_length(each) for each in task.examples]
            return transformers.trainer_pt_utils.LengthGroupedSampler(task.rows, lengths=lengths)

    _be_silent(datasets, transformers)
    gate.is_ready()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Prepared(
            _their_model(task, transformers),
            None if precomputed else _their_model(task, transformers),
            DPOConfig(
                folder,
                beta=BETA,
                precompute_ref_log_probs=precomputed,
                max_length=task.context_tokens,
                **_their_settings(task, task.rows),
            ),
            train_dataset=datasets.Dataset.from_list(task.examples),
            eval_dataset=datasets.Dataset.from_list(task.examples[:CHECKED]),
            processing_class=transformers.AutoTokenizer.from_pretrained(task.folder / "tokenizer"),
        )
        found = trainer.evaluate()
        gate.tell({name: found[f"eval_{name}"] for name in ("logps/chosen", "logps/rejected")})
        trainer.add_callback(_waits(transformers, gate))
        trainer.train()


def _their_settings(task: Task, rows_at_once: int) -> dict[str, Any]:
    """What makes TRL fast on a CPU; fused AdamW is its default."""
    return {
        "per_device_train_batch_size": rows_at_once,
        "per_device_eval_batch_size": CHECKED,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": CLIP,
        "max_steps": ENDLESS,
        "gradient_checkpointing": False,
        "bf16": task.dtype == "bfloat16",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def _their_model(task: Task, transformers: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        task.folder / "model", dtype=torch.float32, attn_implementation="sdpa"
    )


def _length(pair: Mapping[str, list[int]]) -> int:
    return len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))


def _waits(transformers: Any, gate: Gate) -> Any:
    class Waits(transformers.TrainerCallback):  # type: ignore[misc]
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            gate.round_is_done()

    return Waits()


def _be_silent(datasets: Any, transformers: Any) -> None:
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
