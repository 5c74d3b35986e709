"""A reward model: the language model's body with one number on top, in Hugging Face's form.

Shapes: B rows, T tokens, D width.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.whitebox.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from stages.whitebox.expert_names import split_experts
from stages.whitebox.hf_config import model_type
from stages.whitebox.model import CausalLM

WITHOUT_HEAD = frozenset({"dots1"})


class RewardModel(nn.Module):
    """Scores a dialogue by the final hidden state of its last token, which has seen all the others.

    The head begins with weights of variance 1 / (D + 1) (Stiennon et al. 2020, arXiv:2009.01325, appendix
    B.1), drawn from `seed`. The body is the language model that is given, and is trained with it; its output
    matrix is not used.
    """

    def __init__(self, language_model: CausalLM, seed: int = 0) -> None:
        """Raises ValueError when transformers has no such head on this architecture."""
        super().__init__()
        if (kind := model_type(language_model.config)) in WITHOUT_HEAD:
            raise ValueError(f"transformers has no reward model of architecture {kind}; take another method")
        self.language_model = language_model
        if not language_model.config.tie_word_embeddings:
            language_model.output_weight().requires_grad_(False)
        self.score = nn.Linear(language_model.config.hidden_size, 1, bias=False)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self.score.weight.shape, generator=generator)
        with torch.no_grad():
            self.score.weight.copy_(drawn / (language_model.config.hidden_size + 1) ** 0.5)
        self.to(language_model.output_weight().device)

    def forward(self, ids_BxT: Tensor, num_tokens_B: Tensor) -> Tensor:
        """score_B in float32; rows are padded on the right behind `num_tokens_B` tokens."""
        hidden_BxTxD = self.language_model.hidden_states(ids_BxT)
        rows = torch.arange(len(ids_BxT), device=ids_BxT.device)
        with torch.autocast(ids_BxT.device.type, enabled=False):
            score_Bx1: Tensor = self.score(hidden_BxTxD[rows, num_tokens_B - 1].float())
        return score_Bx1.squeeze(-1)


def save_reward_model(model: RewardModel, folder: Path) -> None:
    """Writes what `AutoModelForSequenceClassification` of transformers opens, with the same scores.

    It finds a row's last token as the last one that is no padding, so a text must not end with that token.
    """
    folder.mkdir(parents=True, exist_ok=True)
    body = split_experts(model.language_model.state_dict())
    weights = {name: tensor for name, tensor in body.items() if name != "lm_head.weight"}
    weights["score.weight"] = model.score.weight
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors makes files that only their owner may read
    (folder / CONFIG_FILE).write_text(json.dumps(_config(model), indent=2) + "\n", encoding="utf-8")


def _config(model: RewardModel) -> dict[str, object]:
    fields = model.language_model.config.to_hf()
    name = str(fields["architectures"][0]).replace("ForCausalLM", "ForSequenceClassification")
    return {
        **fields,
        "architectures": [name],
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
    }
