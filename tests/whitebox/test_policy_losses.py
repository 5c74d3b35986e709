"""Advantages and policy losses against TRL's trainer, and against the papers' formulas in plain loops."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.whitebox.losses import IGNORED, token_log_probs
from stages.whitebox.model import CausalLM
from stages.whitebox.policy_losses import (
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    group_advantages,
    has_signal,
    kl_to_reference,
    overlong_penalty,
    summed,
    whitened,
)

Make = Callable[..., CausalLM]
R, T, PROMPT = 4, 12, 5
CLIP_LOW, CLIP_HIGH, KL, MAX_TOKENS = 0.1, 0.15, 0.04, 20
FORMS = {"grpo": "answer", "dapo": "token", "bnpo": "token", "dr_grpo": "constant"}
CASES = [(form, 0.0, False) for form in sorted(FORMS)] + [("grpo", KL, False), ("dapo", KL, True)]


def batch_with_a_tool() -> dict[str, Tensor]:
    """Answers of 7, 4, 6 and 1 tokens, of which two rows had something put in."""
    generator = torch.Generator().manual_seed(0)
    mask_RxT = torch.zeros(R, T - PROMPT)
    for row, length in enumerate((7, 4, 6, 1)):
        mask_RxT[row, :length] = 1
    tool_RxT = torch.ones_like(mask_RxT)
    tool_RxT[0, 2:4] = tool_RxT[2, 1] = 0
    return {
        "ids": torch.randint(4, 61, (R, T), generator=generator),
        "mask": mask_RxT,
        "tool": tool_RxT,
        "noise": 0.2 * torch.randn(R, T - PROMPT, generator=generator),
        "reference_noise": 0.3 * torch.randn(R, T - PROMPT, generator=generator),
        "advantages": torch.tensor([1.2, -0.3, 0.8, -0.5]),
    }


@pytest.fixture
def exported(make_model: Make, tmp_path: Path) -> tuple[CausalLM, Any]:
    """The same weights here and in transformers."""
    from transformers import AutoModelForCausalLM

    from stages.whitebox.checkpoint import save_model

    model = make_model()
    save_model(model, tmp_path / "model")
    return model, AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")


def trl_loss(
    theirs: Any, tmp_path: Path, batch: dict[str, Tensor], form: str, kl: float, corrected: bool
) -> Tensor:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))
    settings = GRPOConfig(
        str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to=[],
        loss_type=form,
        beta=kl,
        use_bias_correction_kl=corrected,
        epsilon=CLIP_LOW,
        epsilon_high=CLIP_HIGH,
        max_completion_length=MAX_TOKENS,
        num_generations=2,
        per_device_train_batch_size=R,
        gradient_accumulation_steps=1,
    )
    trainer = GRPOTrainer(
        theirs,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": "w5"}] * R),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="w3", eos_token="w2", bos_token="w1"
        ),
    )
    trainer.current_gradient_accumulation_steps = 1
    chosen = batch["mask"] * batch["tool"]
    return trainer.compute_loss(
        trainer.model.train(),
        {
            "prompt_ids": batch["ids"][:, :PROMPT],
            "prompt_mask": torch.ones(R, PROMPT, dtype=torch.long),
            "completion_ids": batch["ids"][:, PROMPT:],
            "completion_mask": batch["mask"].long(),
            "tool_mask": batch["tool"].long(),
            "advantages": batch["advantages"],
            "old_per_token_logps": batch["old"],
            "ref_per_token_logps": batch["reference"],
            "num_items_in_batch": chosen.sum(),
        },
    )


@pytest.mark.parametrize(("form", "kl", "corrected"), CASES)
def test_loss_and_gradients_equal_trls(
    exported: Any, tmp_path: Path, form: str, kl: float, corrected: bool
) -> None:
    model, theirs = exported
    batch = batch_with_a_tool()
    chosen_RxT = batch["mask"] * batch["tool"]
    targets_RxT = torch.full((R, T), IGNORED)
    targets_RxT[:, PROMPT - 1 : -1] = torch.where(chosen_RxT > 0, batch["ids"][:, PROMPT:], IGNORED)

    def logp() -> Tensor:
        hidden_RxTxD = model.hidden_states(batch["ids"])
        return token_log_probs(hidden_RxTxD, model.output_weight(), targets_RxT)[:, PROMPT - 1 : -1]

    with torch.no_grad():
        batch["old"] = logp() + batch["noise"]
        batch["reference"] = logp() + batch["reference_noise"]
    expected = trl_loss(theirs, tmp_path, batch, form, kl, corrected)
    expected.backward()

    logp_RxT = logp()
    found = clipped_policy_loss(logp_RxT, batch["old"], batch["advantages"][:, None], CLIP_LOW, CLIP_HIGH)
    assert 0 < int((found.is_clipped_RxT * chosen_RxT).sum()) < int(chosen_RxT.sum())
    loss_RxT = found.loss_RxT + kl * kl_to_reference(
        logp_RxT, batch["reference"], batch["old"] if corrected else None
    )
    total, count = summed(loss_RxT, chosen_RxT, FORMS[form], MAX_TOKENS)  # type: ignore[arg-type]
    (total / count).backward()
    assert float(total.detach() / count) == pytest.approx(float(expected.detach()), rel=1e-5)
    gradients = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        wanted = gradients[name].grad
        assert float((parameter.grad - wanted).norm()) <= 1e-5 * float(wanted.norm()) + 1e-9, name


def test_micro_batches_add_up_to_the_whole() -> None:
    batch = batch_with_a_tool()
    mask_RxT, loss_RxT = batch["mask"] * batch["tool"], batch["noise"]
    for form in ("answer", "token", "constant"):
        whole, count = summed(loss_RxT, mask_RxT, form, MAX_TOKENS)  # type: ignore[arg-type]
        parts = [summed(loss_RxT[rows], mask_RxT[rows], form, MAX_TOKENS) for rows in ([0, 3], [1], [2])]  # type: ignore[arg-type]
        assert float(sum(part for part, _ in parts)) == pytest.approx(float(whole), rel=1e-6)
        assert sum(number for _, number in parts) == count
    nothing = torch.zeros(2, 3)
    assert summed(nothing, nothing, "answer") == (0.0, 0)


def test_advantages_are_the_groups_z_scores() -> None:
    rewards = [1.0, 0.0, 0.5, 0.0, 2.0, 2.0, 2.0, 2.0]
    found = group_advantages(torch.tensor(rewards), 4)
    centred = group_advantages(torch.tensor(rewards), 4, divide_by_std=False)
    for start in (0, 4):
        group = rewards[start : start + 4]
        for place, reward in enumerate(group, start):
            distance = reward - statistics.mean(group)
            assert float(centred[place]) == pytest.approx(distance, abs=1e-6)
            assert float(found[place]) == pytest.approx(distance / (statistics.stdev(group) + 1e-4), abs=1e-5)
    assert has_signal(torch.tensor(rewards), 4).tolist() == [True, False]
    with pytest.raises(ValueError, match="8 rewards in groups of 3"):
        group_advantages(torch.tensor(rewards), 3)


def test_an_answer_that_nearly_fills_its_room_is_punished() -> None:
    assert [overlong_penalty(n, 100, 20) for n in (0, 80, 90, 100)] == [0.0, 0.0, -0.5, -1.0]
    assert overlong_penalty(100, 100, 0) == 0.0


def test_gae_equals_the_sum_of_the_paper() -> None:
    """A_t is the sum of (discount x decay)^l delta_(t+l), over the tokens that were chosen."""
    generator = torch.Generator().manual_seed(3)
    rewards, values = (torch.randn(3, 9, generator=generator) for _ in range(2))
    mask = torch.ones(3, 9)
    mask[0, 5:] = mask[1, 2:4] = mask[2, :3] = 0
    found = gae(rewards, values, mask, discount=0.9, decay=0.8)
    for row in range(3):
        steps = [t for t in range(9) if mask[row, t]]
        following = [*(float(values[row, t]) for t in steps[1:]), 0.0]
        deltas = [
            float(rewards[row, t]) + 0.9 * after - float(values[row, t])
            for t, after in zip(steps, following, strict=True)
        ]
        for place, t in enumerate(steps):
            expected = sum((0.9 * 0.8) ** far * delta for far, delta in enumerate(deltas[place:]))
            assert float(found.advantages_RxT[row, t]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
            assert float(found.returns_RxT[row, t]) == pytest.approx(
                expected + float(values[row, t]), abs=1e-5
            )
    assert not found.advantages_RxT[mask == 0].any() and not found.returns_RxT[mask == 0].any()


def test_whitening_counts_chosen_tokens_only() -> None:
    values = torch.tensor([[1.0, 3.0, 100.0], [5.0, -50.0, 7.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    found = whitened(values, mask)
    spread = statistics.pstdev([1.0, 3.0, 5.0, 7.0])
    assert found[mask > 0].tolist() == pytest.approx([(v - 4) / spread for v in (1, 3, 5, 7)], rel=1e-5)
    assert not found[mask == 0].any()


def test_value_loss_and_its_gradient_equal_the_formula() -> None:
    """One value that moved within the clip, one beyond it towards its return, one beyond it away from it."""
    values = [0.1, 0.9, -0.9]
    leaf = torch.tensor([values], requires_grad=True)
    old, returns = torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 1.0]])
    loss = clipped_value_loss(leaf, old, returns, clip=0.2)
    loss.sum().backward()
    assert leaf.grad is not None
    for place, value in enumerate(values):
        free, kept = (value - 1) ** 2, (min(max(value, -0.2), 0.2) - 1) ** 2
        assert float(loss[0, place]) == pytest.approx(0.5 * max(free, kept))
        gradient = value - 1 if free > kept or abs(value) <= 0.2 else 0.0
        assert float(leaf.grad[0, place]) == pytest.approx(gradient)


def test_ppos_loss_and_gradient_in_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(5)
    logp = torch.randn(2, 6, generator=generator)
    old = logp + 0.3 * torch.randn(2, 6, generator=generator)
    advantages = torch.randn(2, 6, generator=generator)
    leaf = logp.clone().requires_grad_()
    found = clipped_policy_loss(leaf, old, advantages, 0.2, 0.2)
    found.loss_RxT.sum().backward()
    assert leaf.grad is not None
    for row in range(2):
        for t in range(6):
            ratio, advantage = math.exp(logp[row, t] - old[row, t]), float(advantages[row, t])
            clipped = min(max(ratio, 0.8), 1.2)
            assert float(found.loss_RxT[row, t]) == pytest.approx(
                -min(ratio * advantage, clipped * advantage), rel=1e-5
            )
            is_clipped = clipped * advantage < ratio * advantage
            assert bool(found.is_clipped_RxT[row, t]) == is_clipped
            expected = 0.0 if is_clipped else -ratio * advantage
            assert float(leaf.grad[row, t]) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_the_kl_estimate_has_the_kls_mean() -> None:
    """Summed over all tokens with their probabilities it is KL(p || q) exactly."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    found = kl_to_reference(p.log()[None], q.log()[None])[0]
    assert float((p * found).sum()) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    assert (found >= 0).all()
