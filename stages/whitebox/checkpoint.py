"""A model as a folder that `from_pretrained` of Hugging Face opens: weights and two JSON files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stages.whitebox.config import ModelConfig
from stages.whitebox.empty import without_values
from stages.whitebox.model import CausalLM

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"


def save_model(model: CausalLM, folder: Path, stop_ids: Sequence[int] = ()) -> None:
    """Writes the model; the same weights give the same bytes.

    Args:
        stop_ids: ids beside the end of a document that end a generated text (a chat's end of turn).
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors makes files that only their owner may read
    dtype = str(model.output_weight().dtype).removeprefix("torch.")
    _write_json(folder / CONFIG_FILE, {**model.config.to_hf(), "dtype": dtype, "torch_dtype": dtype})
    _write_json(folder / GENERATION_FILE, _generation_config(model.config, stop_ids))


def load_model(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> CausalLM:
    """Reads a folder that `save_model` or Hugging Face wrote; the model is in evaluation mode.

    Args:
        dtype: converts the weights; None keeps them as they are.

    Raises:
        ValueError: a file is missing or broken, or its tensors are not those of `config.json`.
    """
    folder = Path(folder)
    config = ModelConfig.from_hf(_read_json(folder / CONFIG_FILE))
    try:
        weights = load_file(_existing(folder / WEIGHTS_FILE), device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} is not a whole safetensors file: {error}") from error
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    with without_values():
        model = CausalLM(config)
    _check_tensors(folder, model, weights)
    model.load_state_dict(weights, assign=True)
    model = model if dtype is None else model.to(dtype)
    return model.requires_grad_(True).eval()


def read_stop_ids(folder: Path) -> list[int]:
    """The ids in `generation_config.json` that end a text.

    Raises:
        ValueError: the file is missing or broken.
    """
    found = _read_json(Path(folder) / GENERATION_FILE).get("eos_token_id", [])
    return list(found) if isinstance(found, list) else [found]


def _generation_config(config: ModelConfig, stop_ids: Sequence[int]) -> dict[str, object]:
    ends = list(dict.fromkeys([config.eos_token_id, *stop_ids]))
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends,
        "pad_token_id": config.pad_token_id,
        "do_sample": False,
        "max_length": config.max_position_embeddings,
    }


def _check_tensors(folder: Path, model: CausalLM, weights: dict[str, torch.Tensor]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"{folder / WEIGHTS_FILE}: {name} has shape {found.get(name, 'missing')}, "
                f"config.json asks for {wanted.get(name, 'no such tensor')}"
            )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; expected a model folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    return path


def _read_json(path: Path) -> dict[str, object]:
    try:
        return json.loads(_existing(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
