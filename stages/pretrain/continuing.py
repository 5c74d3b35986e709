"""A shape from a file; and first weights from an earlier model: its shape, its vocabulary, and rows for what
the vocabulary grew by.

Only weights are taken over. The optimizer begins anew, so its moments are those of the new text, and the
learning rate warms up again and decays again (Ibrahim et al. 2024, arXiv:2403.08763): without it a model that
was trained down to a small rate hardly learns; with all of it, it forgets more of what it knew.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from stages.pretrain.checkpoint_files import CONFIG_FILE, model_folder, shape_file
from stages.pretrain.spec import PretrainConfig
from stages.runtime.session import StageSession
from stages.whitebox.checkpoint import load_model
from stages.whitebox.config import ModelConfig
from stages.whitebox.extend_embeddings import extend_embeddings
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import IMPORTED_FILE, MODEL_FILE, Tokenizer
from stages.whitebox.tokenizer_match import first_difference

_EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def continued_shape(config: PretrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The earlier model's shape, with the vocabulary of the tokens that it goes on with.

    Raises:
        ValueError: it is no model that we compute, reads fewer tokens than a row has, or its vocabulary is
            not one that the tokenizer's begins with.
    """
    folder = model_folder(config)
    shape = _read_shape(folder / CONFIG_FILE, config.context_tokens)
    _check_vocabulary(folder, shape, tokenizer)
    return _with_vocabulary(shape, tokenizer)


def shape_of_file(config: PretrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The shape in the `config.json` of `shape_from`, with the vocabulary and special tokens of `tokenizer`.

    Raises:
        ValueError: it is no shape that we compute, or reads fewer tokens than a row has.
    """
    return _with_vocabulary(_read_shape(shape_file(config), config.context_tokens), tokenizer)


def _read_shape(path: Path, context_tokens: int) -> ModelConfig:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("is no JSON object")
        shape = ModelConfig.from_hf(fields)
    except (ValueError, TypeError) as problem:  # TypeError: a size that is no number
        raise ValueError(f"{path}: {problem}") from problem
    if context_tokens > (limit := shape.context_limit):
        raise ValueError(
            f"context_tokens is {context_tokens}, the model in {path.parent} reads at most {limit}; set "
            f"context_tokens = {limit} or less"
        )
    return shape


def _with_vocabulary(shape: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    named = {f"{name}_token_id": token for name, token in ids.items() if token >= 0}
    return replace(shape, vocab_size=tokenizer.vocab_size, **named)


def continued_model(
    config: PretrainConfig, shape: ModelConfig, tokenizer: Tokenizer, session: StageSession
) -> CausalLM:
    """The earlier model in float32, with a row for every token of `tokenizer`."""
    folder = model_folder(config)
    earlier = load_model(folder, dtype=torch.float32)
    known, wanted = earlier.config.vocab_size, shape.vocab_size
    session.log(f"going on from {config.continue_from}: {earlier.config.num_params():,} parameters")
    if known == wanted and earlier.config == shape:
        return earlier
    base = _base_tokenizer(folder)
    if base is not None and wanted > base.vocab_size:
        session.log(f"the vocabulary grows from {base.vocab_size:,} to {wanted:,} tokens")
    weights = earlier.state_dict()
    for name in _EMBEDDINGS:
        if name in weights:
            weights[name] = _rows_for(weights[name], base, tokenizer)
    model = CausalLM(shape)
    model.load_state_dict(weights)
    return model


def _rows_for(weight_VxD: Tensor, base: Tokenizer | None, tokenizer: Tokenizer) -> Tensor:
    """Rows beyond the base's tokens are padding that nothing was trained on (Qwen has some): they go."""
    if base is None:
        return weight_VxD
    known_VxD = weight_VxD[: base.vocab_size]
    if tokenizer.vocab_size == base.vocab_size:
        return known_VxD
    return extend_embeddings(known_VxD, base, tokenizer)


def _base_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer beside the weights; None where there is none."""
    if not any((folder / name).is_file() for name in (MODEL_FILE, IMPORTED_FILE)):
        return None
    try:
        return Tokenizer.from_folder(folder)
    except ValueError:
        if not (folder / IMPORTED_FILE).is_file():
            raise
    return _as_published(folder / IMPORTED_FILE)


def _as_published(path: Path) -> Tokenizer:
    """A tokenizer.json without the small file that says which token ends a text, or a Llama with its spaces.

    Only its pieces are asked for, so any special token may stand for the roles.
    """
    from stages.whitebox.imported_tokenizer import ROLES, ImportedTokenizer

    content = path.read_text(encoding="utf-8")
    special = [token["content"] for token in json.loads(content)["added_tokens"] if token["special"]]
    return ImportedTokenizer(content, dict.fromkeys(ROLES[1:], special[0] if special else ""))


def _check_vocabulary(folder: Path, shape: ModelConfig, tokenizer: Tokenizer) -> None:
    base = _base_tokenizer(folder)
    if base is None:
        if shape.vocab_size != tokenizer.vocab_size:
            raise ValueError(
                f"{folder} has {shape.vocab_size} tokens and no tokenizer, ours has {tokenizer.vocab_size}; "
                "put its tokenizer.json beside the weights, so that the two can be compared"
            )
        return
    if base.vocab_size > shape.vocab_size:
        raise ValueError(
            f"{folder} has {shape.vocab_size} embedding rows for a tokenizer of {base.vocab_size} tokens"
        )
    different = first_difference(base, tokenizer)
    if different is not None:
        found = [repr(t.piece(different)) if different < t.vocab_size else "none" for t in (base, tokenizer)]
        raise ValueError(
            f"token {different} is {found[0]} in {folder} and {found[1]} in the tokens to train on; cut the "
            f"text with the model's own tokenizer ([tokenizer] import_from or extend), or begin with fresh "
            f"weights (continue_from = '')"
        )
