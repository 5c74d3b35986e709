"""What keeps the loads of experts equal in training: a loss, or a bias; nothing in models without experts."""

from __future__ import annotations

from collections.abc import Callable

from stages.whitebox.experts import LoadBalancer
from stages.whitebox.model import CausalLM
from stages.whitebox.trainer import StepLoss

OnStep = Callable[[int, dict[str, float]], None]


def with_router_loss(model: CausalLM, loss: StepLoss) -> StepLoss:
    """Adds the gradient of the load-balancing loss and not its value, so that losses compare.

    The loss is that of the tokens of this call, one micro batch in one process. It is a product of two means,
    so the losses of parts do not add up to that of the whole: the number of rows at a time, and of processes,
    has a part in the gradient (of weight `router_aux_loss_coef`), which it has in no other model. So it is in
    transformers, whose models add the loss of the tokens of one forward pass.
    With the sigmoid router there is no such loss: its bias counts the tokens of the whole update.

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
            balancer.forget()
        on_step(step, values)

    return balance_and_tell
