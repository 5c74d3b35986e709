"""Low-rank adapters: the model stays as it is, and beside each of its matrices two thin ones are trained.

    LoRA     y = W x + s B A x,  s = alpha / rank           Hu et al. 2021, arXiv:2106.09685
    rsLoRA   the same with s = alpha / sqrt(rank)           Kalajdzievski 2023, arXiv:2312.03732
    DoRA     y = m (W + s B A) x / |W + s B A|              Liu et al. 2024, arXiv:2402.09353

A begins random and B as zero, so the first step sees the model as it was. DoRA trains the length m of each
row apart from its direction; |.| is the length of a row, and no gradient goes through it (section 4.3).
LoRA+ (Hayou et al. 2024, arXiv:2402.12354) is LoRA with a higher learning rate for B: `optim.build_adamw`.
Afterwards `merge_adapters` adds everything up, and the model is an ordinary one again.

Shapes: O outputs, I inputs, R rank, ... any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.whitebox.model import CausalLM
from stages.whitebox.nf4 import Nf4Linear
from stages.whitebox.token_rows import TokenRows


@dataclass(frozen=True)
class LoraConfig:
    """Shape and kind of all adapters of a model.

    Raises:
        ValueError: a number is out of its range.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    """Share of the inputs of A that are zeroed in training; the others grow by as much."""
    rank_stabilized: bool = False
    """rsLoRA: with alpha / rank the adapters of a high rank hardly learn."""
    magnitude: bool = False
    """DoRA."""
    targets: tuple[str, ...] = ()
    """How the names of the layers end that get one, such as "q_proj"; none named is all of them."""
    token_ids: tuple[int, ...] = ()
    """Tokens whose rows of the embedding are trained whole, ascending."""
    whole_embedding: bool = False
    """Whether all rows are, and the output matrix where that is another one: PEFT's modules to save."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"the rank of an adapter is {self.rank}, expected at least 1")
        if not self.alpha > 0:
            raise ValueError(f"the alpha of an adapter is {self.alpha}, expected more than 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"the dropout of an adapter is {self.dropout}, expected 0 or more, and below 1")
        if self.token_ids and self.whole_embedding:
            raise ValueError("the embedding is trained whole, so no tokens of it can be named beside")

    @property
    def scale(self) -> float:
        """s: what B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


class LoraLinear(nn.Module):
    """A linear layer that is frozen, dense or in 4 bits, with an adapter beside it."""

    def __init__(
        self, base: nn.Linear | Nf4Linear, config: LoraConfig, random: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale, self.dropout = config.scale, config.dropout
        device = base.weight.device
        a_RxI = torch.empty(config.rank, base.in_features)
        nn.init.kaiming_uniform_(a_RxI, a=math.sqrt(5), generator=random)
        self.lora_A = nn.Parameter(a_RxI.to(device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.rank, device=device))
        self.lora_magnitude = (
            nn.Parameter(base.weight.detach().float().norm(dim=1)) if config.magnitude else None
        )

    def forward(self, x_I: Tensor) -> Tensor:
        """x_...xI to y_...xO."""
        y_O = self.base(x_I)
        low_R = F.linear(F.dropout(x_I, self.dropout, self.training), self.lora_A)
        added_O = self.scale * F.linear(low_R, self.lora_B)
        if self.lora_magnitude is None:
            return y_O + added_O
        bias_O = 0.0 if self.base.bias is None else self.base.bias
        return self._gain_O() * (y_O - bias_O + added_O) + bias_O

    def update(self) -> Tensor:
        """s B A, O x I: what is added to the weight."""
        return self.scale * (self.lora_B @ self.lora_A)

    def _gain_O(self) -> Tensor:
        """m / |W + s B A|: the length that a row shall have, by the one that it has."""
        assert self.lora_magnitude is not None
        with torch.no_grad():
            length_O = (self.base.weight + self.update()).norm(dim=1)
        return self.lora_magnitude / length_O

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One dense layer that computes the same."""
        weight_OxI = self.base.weight + self.update()
        if self.lora_magnitude is not None:
            weight_OxI = self._gain_O()[:, None] * weight_OxI
        return dense(weight_OxI, self.base.bias)

    def extra_repr(self) -> str:
        """Shown when the model is printed."""
        kind = "LoRA" if self.lora_magnitude is None else "DoRA"
        return f"{kind} of rank {len(self.lora_A)}, scale {self.scale:g}, dropout {self.dropout:g}"


def dense(weight_OxI: Tensor, bias_O: Tensor | None) -> nn.Linear:
    """A linear layer with this weight, which can be trained."""
    layer = nn.Linear(*reversed(weight_OxI.shape), bias=bias_O is not None, device="meta")
    layer.weight = nn.Parameter(weight_OxI.detach())
    if bias_O is not None:
        layer.bias = nn.Parameter(bias_O.detach())
    return layer


def add_adapters(model: CausalLM, config: LoraConfig, seed: int = 0, four_bit: bool = False) -> None:
    """Freezes the model and puts an adapter on its linear layers: those of all blocks, not the output matrix.

    Experts and the embedding are no linear layers and stay frozen too; but rows of the embedding are trained
    where `token_ids` names them, and all of it with `whole_embedding`.

    Args:
        seed: of the matrices A; the global random state stays as it is.
        four_bit: hold the layers that get one in NF4 (QLoRA: Dettmers et al. 2023, arXiv:2305.14314).

    Raises:
        ValueError: a target that no layer's name ends with, or the model has adapters already.
    """
    if adapters(model):
        raise ValueError("the model has adapters already; merge them first")
    names = targeted(model, config.targets)
    model.requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    for name in names:
        layer = model.get_submodule(name)
        base = Nf4Linear.from_dense(layer) if four_bit else layer
        model.set_submodule(name, LoraLinear(base, config, random).train(model.training))
    if config.token_ids:
        rows = TokenRows(model.model.embed_tokens, config.token_ids).train(model.training)
        model.model.set_submodule("embed_tokens", rows)
    if config.whole_embedding:
        for parameter in embedding_weights(model).values():
            parameter.requires_grad_(True)
    model.draws_in_training = config.dropout > 0


def targeted(model: CausalLM, targets: tuple[str, ...]) -> list[str]:
    """Names of the linear layers that end with one of `targets`, as PEFT matches them; all for no targets.

    Raises:
        ValueError: a target is no layer; it names those that there are.
    """
    found = [name for name, _ in _linear_layers(model)]
    known = dict.fromkeys(name.rpartition(".")[2] for name in found)
    if unknown := [target for target in targets if not any(_ends_with(name, target) for name in found)]:
        raise ValueError(
            f"adapters are asked for on {', '.join(unknown)}; the linear layers of this model are "
            f"{', '.join(known)}"
        )
    return [name for name in found if not targets or any(_ends_with(name, target) for target in targets)]


def _ends_with(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _linear_layers(model: CausalLM) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.model.named_modules(prefix="model"):
        if isinstance(module, nn.Linear):
            yield name, module


def adapters(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers that have an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def embedding_weights(model: CausalLM) -> dict[str, nn.Parameter]:
    """The matrices with a row for each token, by name: the embedding and, if not tied, the output."""
    names = ("model.embed_tokens.weight", "lm_head.weight")
    return {name: p for name, p in model.named_parameters() if name in names}


def merge_adapters(model: CausalLM) -> None:
    """Adds every adapter to its layer's weight: the model is dense, whole and trainable again.

    A layer that was in 4 bits keeps the values that these stood for: the adapter was trained beside them.
    """
    for name, layer in adapters(model).items():
        model.set_submodule(name, layer.merged())
    if isinstance(model.model.embed_tokens, TokenRows):
        model.model.set_submodule("embed_tokens", model.model.embed_tokens.merged())
    model.draws_in_training = False
    model.requires_grad_(True)


def num_trained(model: nn.Module) -> int:
    """Parameters that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
