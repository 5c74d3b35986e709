"""PPO's policy with a second output: what reward is still to come, told from the same hidden states.

Sharing the layers keeps one model in memory; the value loss trains them too, by `value_coefficient`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.whitebox.model import CausalLM


class ValueModel(nn.Module):
    """A policy and a linear head on its hidden states, which begins at zero. R rows, T tokens."""

    def __init__(self, policy: CausalLM) -> None:
        super().__init__()
        self.policy = policy
        device = policy.output_weight().device
        self.value_head = nn.Linear(policy.config.hidden_size, 1, device=device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def values(self, ids_RxT: Tensor) -> Tensor:
        """The value before each next token, values_RxT in float32."""
        return self.values_of(self.policy.hidden_states(ids_RxT.to(self.value_head.weight.device)))

    def values_of(self, hidden_RxTxD: Tensor) -> Tensor:
        """The same of hidden states that are there already."""
        with torch.autocast(hidden_RxTxD.device.type, enabled=False):
            values_RxTx1: Tensor = self.value_head(hidden_RxTxD.float())
            return values_RxTx1.squeeze(-1)
