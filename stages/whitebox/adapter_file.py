"""Adapters as a folder that PEFT opens: `adapter_config.json` and `adapter_model.safetensors`.

    from peft import PeftModel
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), ADAPTER)

The format: https://huggingface.co/docs/peft/developer_guides/checkpoint. A matrix has the name of the layer
beside which it stands, behind `base_model.model.`. Ours has the sha256 of the base in the file's header as
well, so that an adapter is not put on another model of the same shape; PEFT's has not, and is taken by its
shapes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.whitebox.checkpoint import drop_tied_output
from stages.whitebox.lora import LoraConfig, adapters, embedding_weights, targeted
from stages.whitebox.model import CausalLM
from stages.whitebox.tensor_file import bytes_of
from stages.whitebox.token_rows import TokenRows

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
BASE = "base_sha256"
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
TOKENS = "model.embed_tokens.token_adapter.trainable_tokens_delta"

NOT_HERE: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    # Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) begin by taking something off the base's weights.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
    "alora_invocation_tokens": (None, []),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
}
"""Fields of PEFT's that would change the numbers, and with which values they do not."""


def base_digest(model: CausalLM) -> str:
    """The sha256 of a model without adapters: names, shapes and float32 values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor.detach().cpu().float().contiguous()))
    return digest.hexdigest()


def save_adapter(model: CausalLM, config: LoraConfig, folder: Path, base: str) -> None:
    """Writes the adapters of `model`; the same ones give the same bytes.

    Args:
        base: `base_digest` of the model before they were added.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(model).items()}
    if config.whole_embedding and model.config.tie_word_embeddings:
        # PEFT looks for the one matrix under both of its names.
        tensors[PREFIX + OUTPUT] = tensors[PREFIX + EMBEDDING].clone()
    # One entry only: safetensors writes several in an order that changes from run to run.
    save_file(tensors, folder / WEIGHTS_FILE, metadata={BASE: base})
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors makes files that only their owner may read
    text = json.dumps(_peft_fields(model, config), indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def read_adapter_config(folder: Path) -> LoraConfig:
    """Rank, alpha, kind and targets of a folder that `save_adapter` or PEFT wrote.

    Raises:
        ValueError: a file is missing or broken, or its options would change the numbers in a way that these
            adapters have not.
    """
    fields = _read_fields(folder / CONFIG_FILE)
    if fields.get("peft_type") != "LORA":
        raise ValueError(f"{folder} is an adapter of kind {fields.get('peft_type')}; expected LORA")
    for name, harmless in NOT_HERE.items():
        if name in fields and fields[name] not in harmless:
            raise ValueError(f"{folder / CONFIG_FILE}: {name} = {fields[name]!r} is not supported here")
    targets = fields.get("target_modules")
    if targets == "all-linear":
        targets = []
    if not isinstance(targets, list):
        raise ValueError(
            f'{folder / CONFIG_FILE}: target_modules is {targets!r}; expected names such as ["q_proj"]'
        )
    if missing := [name for name in ("r", "lora_alpha") if not isinstance(fields.get(name), int | float)]:
        raise ValueError(f"{folder / CONFIG_FILE} lacks {' and '.join(missing)}; expected numbers")
    return LoraConfig(
        rank=int(fields["r"]),
        alpha=float(fields["lora_alpha"]),
        dropout=float(fields.get("lora_dropout") or 0.0),
        rank_stabilized=bool(fields.get("use_rslora")),
        magnitude=bool(fields.get("use_dora")),
        targets=tuple(sorted(targets)),
        token_ids=_token_ids(fields, folder),
        whole_embedding=_is_embedding_whole(fields, folder),
    )


def check_same_kind(model: CausalLM, wanted: LoraConfig, found: LoraConfig, folder: Path) -> None:
    """Whether an adapter is what is asked for; dropout may differ.

    Raises:
        ValueError: rank, alpha, kind or layers are others; it names all that are.
    """
    pairs: dict[str, tuple[Any, Any]] = {
        name: (getattr(found, name), getattr(wanted, name)) for name in ("rank", "alpha")
    }
    pairs["kind"] = (_kind(found), _kind(wanted))
    had_layers, wanted_layers = (targeted(model, one.targets) for one in (found, wanted))
    pairs["trained tokens"] = (_trained_tokens(found), _trained_tokens(wanted))
    if had_layers != wanted_layers:
        pairs["layers"] = (_in_words(had_layers), _in_words(wanted_layers))
    if other := [f"{name} {had}, expected {want}" for name, (had, want) in pairs.items() if had != want]:
        raise ValueError(
            f"the adapter in {folder} has {'; '.join(other)}: set adapter, adapter_rank, adapter_alpha, "
            "adapter_targets and adapter_embeddings as they were when it was made, or begin without it"
        )


def load_adapter(model: CausalLM, folder: Path, base: str) -> None:
    """Fills the adapters of `model` with those of a folder.

    Args:
        base: `base_digest` of the model before adapters were added.

    Raises:
        ValueError: the file is missing or broken, was made beside another model, or its tensors are not those
            of this model's adapters; it names the first.
    """
    path = folder / WEIGHTS_FILE
    saved, made_beside = _read_weights(path)
    if made_beside not in (None, base):
        raise ValueError(
            f"the adapter in {folder} was trained beside another base model (sha256 {made_beside[:12]}, this "
            f"one is {base[:12]}); take the model that it was made with, or begin without it"
        )
    found = {name.removeprefix(PREFIX).replace(".default", ""): tensor for name, tensor in saved.items()}
    if model.config.tie_word_embeddings:
        drop_tied_output(folder, found)
    wanted = _tensors(model)
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        had, want = (tuple(one[name].shape) if name in one else None for one in (found, wanted))
        if had != want:
            raise ValueError(
                f"{path}: {name} has shape {had or 'missing'}, this model's adapter has "
                f"{want or 'no such tensor'}; it was made for a model of another shape"
            )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(found[name])


def _tensors(model: CausalLM) -> dict[str, Tensor]:
    """PEFT's names, without the prefix, to our parameters."""
    found: dict[str, Tensor] = {}
    for name, layer in adapters(model).items():
        found |= {f"{name}.lora_A.weight": layer.lora_A, f"{name}.lora_B.weight": layer.lora_B}
        if layer.lora_magnitude is not None:
            found[f"{name}.lora_magnitude_vector"] = layer.lora_magnitude
    if isinstance(model.model.embed_tokens, TokenRows):
        found[TOKENS] = model.model.embed_tokens.rows_KxD
    return found | {name: p for name, p in embedding_weights(model).items() if p.requires_grad}


def _token_ids(fields: dict[str, Any], folder: Path) -> tuple[int, ...]:
    ids = fields.get("trainable_token_indices") or []
    if not isinstance(ids, list) or ids != sorted(set(ids)):
        raise ValueError(
            f"{folder / CONFIG_FILE}: trainable_token_indices is {ids!r}; expected ascending ids of tokens"
        )
    return tuple(ids)


def _is_embedding_whole(fields: dict[str, Any], folder: Path) -> bool:
    """Whether the tables of the tokens are among PEFT's modules to save; others are not known here."""
    modules = fields.get("modules_to_save") or []
    names = set(_last_names(modules))  # PEFT adds "model.embed_tokens" to "embed_tokens" where it is tied
    both = names == {"embed_tokens", "lm_head"}
    # Without the tying PEFT trains a copy of the embedding, and the output matrix stays as it was.
    tied = names == {"embed_tokens"} and bool(fields.get("ensure_weight_tying"))
    if modules and not both and not tied:
        raise ValueError(
            f"{folder / CONFIG_FILE}: modules_to_save = {modules!r} is not supported here; expected "
            '["embed_tokens", "lm_head"], or ["embed_tokens"] with ensure_weight_tying = true'
        )
    return both or tied


def _modules_to_save(model: CausalLM) -> list[str]:
    return [name.split(".")[-2] for name in embedding_weights(model)]


def _trained_tokens(config: LoraConfig) -> str | list[int]:
    return "all" if config.whole_embedding else list(config.token_ids)


def _peft_fields(model: CausalLM, config: LoraConfig) -> dict[str, Any]:
    is_whole = float(config.alpha).is_integer()
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": None,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if is_whole else config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rank_stabilized,
        "use_dora": config.magnitude,
        "target_modules": _target_names(model),
        "trainable_token_indices": list(config.token_ids) or None,
        "modules_to_save": _modules_to_save(model) if config.whole_embedding else None,
        "ensure_weight_tying": config.whole_embedding and model.config.tie_word_embeddings,
        "bias": "none",
        "fan_in_fan_out": False,
    }


def _target_names(model: CausalLM) -> list[str]:
    """The last part of the layers' names; the names themselves where that would mean other layers, too."""
    names = list(adapters(model))
    last = _last_names(names)
    others = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    # The layer inside an adapter is called "base".
    return sorted(names) if set(last) & set(_last_names(others)) else last


def _last_names(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _in_words(names: Sequence[str]) -> str:
    return f"{', '.join(_last_names(names))} ({len(names)} layers)"


def _kind(config: LoraConfig) -> str:
    if config.magnitude:
        return "DoRA with rsLoRA's scale" if config.rank_stabilized else "DoRA"
    return "rsLoRA" if config.rank_stabilized else "LoRA"


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str | None]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected an adapter: {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        with safe_open(path, framework="pt") as file:
            made_beside = (file.metadata() or {}).get(BASE)
        return load_file(path), made_beside
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _read_fields(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected an adapter: {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
