"""Loss and gradient of every parameter, by each method, as TRL computes them on the same ids and weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.dpo.objectives import KtoObjective, PairObjective
from stages.dpo.pairs import Completion, Pairs, batch_of, read_pairs, rows_of
from stages.dpo.preference import log_probs_of
from stages.dpo.reward import RewardObjective
from stages.dpo.single_answers import answers_of
from stages.dpo.spec import DpoConfig
from stages.whitebox.checkpoint import load_model
from stages.whitebox.reward_model import RewardModel, save_reward_model

PICKED = [0, 3, 11, 17, 20]
PAD = 3
Example = dict[str, Any]


@pytest.fixture(scope="module")
def pairs(preferences_part: Path, base_model: Any) -> Pairs:
    found = read_pairs(preferences_part, base_model.tokenizer, 128, 1000)["train"]
    return Pairs(chosen=[found.chosen[i] for i in PICKED], rejected=[found.rejected[i] for i in PICKED])


@pytest.fixture(scope="module")
def policy_folder(base_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model some steps away from where it was."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    policy = AutoModelForCausalLM.from_pretrained(base_model.model)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("policy")
    policy.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trainer(
    base_model: Any, policy_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """Call with TRL's trainer, its configuration, the model class, a row of data and settings."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    def make(
        kind: type, arguments: type, model: Any, row: Example, reference: Any = None, **fields: Any
    ) -> Any:
        folder = str(tmp_path_factory.mktemp("trl"))
        common: Example = {"use_cpu": True, "bf16": False, "report_to": []}
        others = {} if reference is None else {"ref_model": reference}
        return kind(
            model=model,
            args=arguments(folder, **common, **fields),
            train_dataset=Dataset.from_list([row] * 4),
            processing_class=AutoTokenizer.from_pretrained(base_model.tokenizer_folder),
            **others,
        )

    return make


def causal(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).train()


def two_sides(pairs: Pairs, i: int) -> Example:
    chosen, rejected = pairs.chosen[i], pairs.rejected[i]
    return {
        "prompt_ids": chosen.ids[: chosen.start],
        "chosen_ids": chosen.ids[chosen.start :],
        "rejected_ids": rejected.ids[rejected.start :],
    }


def batch_with_reference(pairs: Pairs, reference_folder: Path) -> dict[str, Tensor]:
    reference_2xP = log_probs_of(load_model(reference_folder), pairs, 8, PAD)
    references = {"reference_chosen": reference_2xP[0], "reference_rejected": reference_2xP[1]}
    return batch_of(pairs, range(len(pairs)), PAD) | references


def check_same(ours: nn.Module, loss: Tensor, theirs: nn.Module, their_loss: Tensor) -> None:
    """Losses, and each parameter's gradient by its length, to 1e-5."""
    assert float(loss.detach()) == pytest.approx(float(their_loss.detach()), rel=1e-5)
    loss.backward()
    their_loss.backward()
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert {name.removeprefix("language_model.") for name in found} == set(expected)
    for name, gradient in found.items():
        reference = expected[name.removeprefix("language_model.")]
        assert (gradient - reference).norm() <= 1e-5 * reference.norm(), name


DPO_FORMS = [
    ({"beta": 0.3}, {"loss_type": ["sigmoid"], "beta": 0.3}, False),
    (
        {"beta": 0.3, "label_smoothing": 0.2, "robust": True},
        {"loss_type": ["robust"], "label_smoothing": 0.2, "beta": 0.3},
        False,
    ),
    ({"beta": 4.0, "length_normalised": True}, {"loss_type": ["sigmoid_norm"], "beta": 4.0}, False),
    ({"method": "ipo", "beta": 0.3}, {"loss_type": ["ipo"], "beta": 0.3}, False),
    # TRL has conservative DPO as "aot", which sorts the pairs of a batch first: so one by one.
    (
        {"beta": 0.3, "label_smoothing": 0.2},
        {"loss_type": ["aot"], "label_smoothing": 0.2, "beta": 0.3},
        True,
    ),
    # TRL's own loss on chosen answers is a mean over all tokens of a batch, so pairs are equal one by one.
    (
        {"beta": 0.3, "sft_term": 0.7},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7], "beta": 0.3},
        True,
    ),
]


@pytest.mark.parametrize(("fields", "theirs", "one_by_one"), DPO_FORMS, ids=lambda value: str(value)[:40])
def test_dpo_and_its_forms_are_trls(
    fields: Example,
    theirs: Example,
    one_by_one: bool,
    pairs: Pairs,
    base_model: Any,
    policy_folder: Path,
    trainer: Callable[..., Any],
) -> None:
    from trl import DPOConfig, DPOTrainer

    policy = causal(policy_folder)
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    peer = trainer(DPOTrainer, DPOConfig, policy, row, causal(base_model.model), **theirs)
    examples = [two_sides(pairs, i) for i in range(len(pairs))]
    groups = [[example] for example in examples] if one_by_one else [examples]
    their_loss = torch.stack(
        [peer.compute_loss(policy, peer.data_collator(group)) for group in groups]
    ).mean()
    ours = load_model(policy_folder)
    found = PairObjective(DpoConfig(**{"sft_term": 0.0, **fields}))(
        ours, batch_with_reference(pairs, base_model.model)
    )
    assert found.num_targets == len(pairs)
    check_same(ours, found.loss_sum / len(pairs), policy, their_loss)
    if not one_by_one and "length_normalised" not in fields and "method" not in fields:
        metrics = peer._metrics["train"]
        assert found.metrics["margin"] == pytest.approx(metrics["rewards/margins"][0], abs=1e-5)
        assert found.metrics["accuracy"] == pytest.approx(metrics["rewards/accuracies"][0], abs=1e-6)
        assert found.metrics["chosen_log_prob"] == pytest.approx(metrics["logps/chosen"][0], rel=1e-5)
        assert found.metrics["rejected_log_prob"] == pytest.approx(metrics["logps/rejected"][0], rel=1e-5)


def concatenated(pairs: Pairs) -> dict[str, Tensor]:
    """A batch as the trainers of `trl.experimental` collate it."""
    batch: dict[str, Tensor] = {}
    for side, completions in (("chosen", pairs.chosen), ("rejected", pairs.rejected)):
        rows = rows_of(completions, PAD)
        labels_BxT = rows["targets"].roll(1, dims=1)
        labels_BxT[:, 0] = -100
        batch[f"{side}_input_ids"], batch[f"{side}_labels"] = rows["ids"], labels_BxT
        batch[f"{side}_attention_mask"] = (rows["ids"] != PAD).long()
    return batch


def test_simpo_is_trls(pairs: Pairs, policy_folder: Path, trainer: Callable[..., Any]) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    policy = causal(policy_folder)
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    settings = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 1.7, "simpo_gamma": 0.6, "max_length": 128}
    peer = trainer(CPOTrainer, CPOConfig, policy, row, **settings)
    their_loss, _ = peer.get_batch_loss_metrics(policy, concatenated(pairs))
    ours = load_model(policy_folder)
    config = DpoConfig(method="simpo", beta=1.7, simpo_gamma=0.6)
    found = PairObjective(config)(ours, batch_of(pairs, range(len(pairs)), PAD))
    check_same(ours, found.loss_sum / len(pairs), policy, their_loss)


def test_orpo_is_trls_where_the_prompt_is_one_token(
    pairs: Pairs, policy_folder: Path, trainer: Callable[..., Any]
) -> None:
    """TRL also trains on the prompt's own tokens, and means over a batch: one-token prompts, pair by pair."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    short = Pairs(
        chosen=[Completion([1, *c.ids[c.start :]], 1) for c in pairs.chosen],
        rejected=[Completion([1, *c.ids[c.start :]], 1) for c in pairs.rejected],
    )
    policy = causal(policy_folder)
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    peer = trainer(ORPOTrainer, ORPOConfig, policy, row, beta=0.4, max_length=128)
    single = [Pairs(chosen=[c], rejected=[r]) for c, r in zip(short.chosen, short.rejected, strict=True)]
    losses = [peer.get_batch_loss_metrics(policy, concatenated(pair))[0] for pair in single]
    ours = load_model(policy_folder)
    config = DpoConfig(method="orpo", beta=0.4)
    found = PairObjective(config)(ours, batch_of(short, range(len(short)), PAD))
    check_same(ours, found.loss_sum / len(short), policy, torch.stack(losses).mean())


@pytest.mark.parametrize(("micro", "swapped"), [(3, False), (3, True), (100, False), (100, True)])
def test_kto_is_trls(
    micro: int, swapped: bool, pairs: Pairs, base_model: Any, policy_folder: Path, trainer: Callable[..., Any]
) -> None:
    from trl import KTOConfig, KTOTrainer

    answers = answers_of(pairs)
    reference_folder = base_model.model
    if swapped:  # one of the two is nearer to the mismatched answers, so its baseline is above zero
        policy_folder, reference_folder = reference_folder, policy_folder
    policy = causal(policy_folder)
    row = {"prompt": "a", "completion": "b", "label": True}
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
    peer = trainer(KTOTrainer, KTOConfig, policy, row, causal(reference_folder), beta=0.3, **weights)
    examples = [
        {
            "prompt_ids": answer.ids[: answer.start],
            "completion_ids": answer.ids[answer.start :],
            "KL_completion_ids": mismatched.ids[mismatched.start :],
            "label": label,
        }
        for answer, label, mismatched in zip(*vars(answers).values(), strict=True)
    ]
    their_loss = peer.compute_loss(policy, peer.data_collator(examples))
    both = Pairs(chosen=answers.completions, rejected=answers.mismatched)
    reference_2xR = log_probs_of(load_model(reference_folder), both, 8, PAD)
    batch = rows_of(answers.completions, PAD)
    batch |= {f"mismatched_{name}": rows for name, rows in rows_of(answers.mismatched, PAD).items()}
    batch |= {"reference": reference_2xR[0], "mismatched_reference": reference_2xR[1]}
    batch["is_desirable"] = torch.tensor(answers.is_desirable)
    ours = load_model(policy_folder)
    found = KtoObjective(DpoConfig(method="kto", beta=0.3, **weights), micro)(ours, batch)
    assert (found.metrics["kto_baseline"] > 0) is swapped
    assert found.metrics["kto_baseline"] == pytest.approx(peer._metrics["train"]["kl"][0], abs=1e-4)
    check_same(ours, found.loss_sum / len(answers), policy, their_loss)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_reward_models_loss_is_trls(
    margin: float, pairs: Pairs, policy_folder: Path, trainer: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    ours = RewardModel(load_model(policy_folder), seed=5)
    save_reward_model(ours, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1).train()
    peer = trainer(RewardTrainer, RewardConfig, theirs, {"chosen": "b", "rejected": "c"})
    sides = zip(pairs.chosen, pairs.rejected, strict=True)
    examples = [{"chosen_ids": c.ids, "rejected_ids": r.ids, "margin": margin} for c, r in sides]
    their_loss = peer.compute_loss(theirs, peer.data_collator(examples))
    found = RewardObjective(margin)(ours, batch_of(pairs, range(len(pairs)), PAD))
    check_same(ours, found.loss_sum / len(pairs), theirs, their_loss)
    assert found.metrics["accuracy"] == pytest.approx(peer._metrics["train"]["accuracy"][0])
    assert found.metrics["margin"] == pytest.approx(peer._metrics["train"]["margin"][0], abs=1e-5)
