"""Adapters in fine-tuning: put on the base model, trained in its place, saved, and added to it at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from stages.runtime.session import StageSession
from stages.sft.adapter_files import adapter_folder
from stages.sft.spec import SftConfig
from stages.whitebox.adapter_file import (
    base_digest,
    check_same_kind,
    load_adapter,
    read_adapter_config,
    save_adapter,
)
from stages.whitebox.lora import LoraConfig, adapters, add_adapters, merge_adapters, num_trained
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import Tokenizer

STRENGTH = 8.0
"""What an adapter counts times the root of its rank; see the README for what was tried."""
FOLDER = "adapter"
"""Beside the merged model: whoever opens a model's folder does not look into folders inside it."""


@dataclass(frozen=True)
class Adapted:
    """A model with adapters on it, or without for full fine-tuning."""

    model: CausalLM
    config: LoraConfig | None
    base_sha256: str = ""

    def finish(self, folder: Path) -> None:
        """Saves the adapter in the model's `folder` in PEFT's format, then makes the model whole again."""
        if self.config is not None:
            save_adapter(self.model, self.config, folder / FOLDER, self.base_sha256)
            merge_adapters(self.model)


def put_adapter(config: SftConfig, model: CausalLM, tokenizer: Tokenizer, session: StageSession) -> Adapted:
    """What the settings ask for, new or from `adapter_from`.

    Raises:
        ValueError: a target is unknown, or the adapter to begin with is of another kind, shape or base.
    """
    wanted = lora_config(config, tokenizer)
    if wanted is None:
        return Adapted(model, None)
    num_all, digest, start = num_trained(model), base_digest(model), adapter_folder(config)
    if start is not None:
        check_same_kind(model, wanted, read_adapter_config(start), start)
    add_adapters(model, wanted, config.seed, four_bit=config.adapter == "qlora")
    if start is not None:
        load_adapter(model, start, digest)
        session.log(f"the adapter begins as that in {start}")
    _say_what_is_trained(config, model, num_all, session)
    return Adapted(model, wanted, digest)


def lora_config(config: SftConfig, tokenizer: Tokenizer) -> LoraConfig | None:
    """The adapters of a configuration; None for full fine-tuning."""
    if config.adapter == "none":
        return None
    return LoraConfig(
        rank=config.adapter_rank,
        alpha=_alpha(config),
        dropout=config.adapter_dropout,
        rank_stabilized=config.adapter == "rslora",
        magnitude=config.adapter == "dora",
        targets=config.adapter_targets,
        token_ids=chat_tokens(tokenizer) if config.adapter_embeddings == "control" else (),
        whole_embedding=config.adapter_embeddings == "all",
    )


def _alpha(config: SftConfig) -> float:
    """Steps of AdamW are as long in every element of B, so the length of B A x grows with sqrt(rank)."""
    if config.adapter_alpha != "auto":
        return config.adapter_alpha
    return STRENGTH if config.adapter == "rslora" else STRENGTH * math.sqrt(config.adapter_rank)


def chat_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of the control tokens that only conversations hold."""
    of_documents = {tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    ids = (token for token in range(tokenizer.vocab_size) if tokenizer.is_special(token))
    return tuple(token for token in ids if token not in of_documents)


def _say_what_is_trained(config: SftConfig, model: CausalLM, num_all: int, session: StageSession) -> None:
    layers = adapters(model)
    names = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    trained = num_trained(model)
    session.log(
        f"{config.adapter} of rank {config.adapter_rank} on {len(layers)} layers ({names}): {trained:,} "
        f"parameters are trained, {trained / num_all:.1%} of the model's {num_all:,}"
    )
    if model.config.num_experts:
        session.log("the matrices of experts are no linear layers: they get no adapter, and stay in float32")
    held = [*model.parameters(), *model.buffers()]
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in held)
    session.log(f"weights take {num_bytes / 1e6:.1f} MB, as float32 {4 * (num_all + trained) / 1e6:.1f} MB")
