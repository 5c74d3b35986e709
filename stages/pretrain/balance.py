"""What keeps the loads of experts equal in training: a loss, or a bias; nothing in models without experts."""

from __future__ import annotations

from collections.abc import Callable

from stages.pretrain.spec import PretrainConfig
from stages.runtime.errors import UserError
from stages.whitebox.experts import LoadBalancer
from stages.whitebox.model import CausalLM
from stages.whitebox.trainer import StepLoss

OnStep = Callable[[int, dict[str, float]], None]


def refuse_experts(config: PretrainConfig) -> None:
    """Raises UserError for experts in several processes: each would balance by its own tokens alone."""
    refuse_experts_if(config.has_experts)


def refuse_experts_if(are_divided: bool) -> None:
    """The same, where the shape is known. Raises UserError."""
    if are_divided:
        raise UserError(
            "a model with experts is trained in one process only, and more are asked for",
            hint="set gpus, processes and nodes to 1, or take a model without experts",
        )


def with_router_loss(model: CausalLM, loss: StepLoss) -> StepLoss:
    """Adds the gradient of the load-balancing loss and not its value, so that losses compare.

    The metric `router_loss` is `num_experts_per_tok` when the loads are equal.
    """
    if not model.config.num_experts:
        return loss
    router_loss, loss_sum = model.router_loss(), loss.loss_sum
    if model.config.scoring_func == "softmax":
        weight = loss.num_targets * model.config.router_aux_loss_coef
        loss_sum = loss_sum + weight * (router_loss - router_loss.detach())
    metrics = {**loss.metrics, "router_loss": float(router_loss.detach())}
    return StepLoss(loss_sum, loss.num_targets, metrics)


def balancing(model: CausalLM, on_step: OnStep) -> OnStep:
    """`on_step`, which the trainer calls after an update and before its checkpoint, moves the biases too."""
    balancer = LoadBalancer(model)

    def balance_and_tell(step: int, values: dict[str, float]) -> None:
        if "train_loss" in values:
            balancer.update()
        else:  # a skipped step changes nothing
            balancer.loads.clear()
        on_step(step, values)

    return balance_and_tell
