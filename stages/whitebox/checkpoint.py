"""A model as a folder that `from_pretrained` of Hugging Face opens: weights and two JSON files.

Folders of the hub open here too: weights in one file or in several with an index, in
float32, bfloat16 or float16.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stages.whitebox.config import ModelConfig
from stages.whitebox.empty import without_values
from stages.whitebox.expert_names import fuse_experts, split_experts
from stages.whitebox.model import CausalLM

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"


def save_model(model: CausalLM, folder: Path, stop_ids: Sequence[int] = ()) -> None:
    """Writes the model; the same weights give the same bytes.

    Args:
        stop_ids: ids beside the end of a document that end a generated text (a chat's end of turn).
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = split_experts(model.state_dict())
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
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
        ValueError: a file is missing or broken, its tensors are not those of `config.json`, or they are
            quantized.
    """
    folder = Path(folder)
    fields = _read_json(folder / CONFIG_FILE)
    if "quantization_config" in fields:
        raise ValueError(
            f"{folder} holds a quantized model; open it with load_quantized, or take the float one"
        )
    config = ModelConfig.from_hf(fields)
    weights = fuse_experts(_read_weights(folder, device))
    if config.tie_word_embeddings:
        drop_tied_output(folder, weights)
    with without_values():
        model = CausalLM(config)
    _check_tensors(folder, model, weights)
    model.load_state_dict({name: _converted(name, t, dtype) for name, t in weights.items()}, assign=True)
    return model.requires_grad_(True).eval()


def read_stop_ids(folder: Path) -> list[int]:
    """The ids in `generation_config.json` that end a text.

    Raises:
        ValueError: the file is missing or broken.
    """
    found = _read_json(Path(folder) / GENERATION_FILE).get("eos_token_id", [])
    return list(found) if isinstance(found, list) else [found]


def _read_weights(folder: Path, device: torch.device | str) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for name in _weight_files(folder):
        try:
            weights |= load_file(_existing(folder / name), device=str(device))
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is not a whole safetensors file: {error}") from error
    # Old Llama files carry RoPE's frequencies, which follow from config.json.
    return {name: tensor for name, tensor in weights.items() if not name.endswith("rotary_emb.inv_freq")}


def _weight_files(folder: Path) -> list[str]:
    """One file, or those that the index names; a name must not lead out of the folder."""
    if (folder / WEIGHTS_FILE).is_file() or not (folder / INDEX_FILE).is_file():
        return [WEIGHTS_FILE]
    weight_map = _read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{folder / INDEX_FILE} has no weight_map; expected the file of each tensor")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{folder / INDEX_FILE} names {name!r}; expected a file in the same folder")
    return names


def drop_tied_output(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Takes the second name of a tied embedding out of `weights`.

    Raises:
        ValueError: the two are not the same.
    """
    output = weights.pop("lm_head.weight", None)
    embedding = weights.get("model.embed_tokens.weight")
    if output is not None and embedding is not None and not torch.equal(output, embedding):
        raise ValueError(
            f"{folder}: lm_head.weight differs from model.embed_tokens.weight, but config.json has "
            "tie_word_embeddings = true; set it to false to keep both"
        )


def _converted(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Steps of a router's bias are smaller than 16 bits resolve, so it stays float32."""
    if name.endswith("e_score_correction_bias"):
        return tensor.to(torch.float32)
    return tensor if dtype is None else tensor.to(dtype)


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
