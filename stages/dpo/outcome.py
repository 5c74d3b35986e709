"""Before and after: the tables and charts of the report, and the figures of the manifest."""

from __future__ import annotations

from collections.abc import Mapping

from stages.dpo.guard import advice
from stages.dpo.held_out import PairScore
from stages.dpo.spec import DpoConfig
from stages.dpo.watch import Scores, curve_points
from stages.runtime.session import StageSession
from stages.whitebox.intervals import share_with_interval
from stages.whitebox.trainer import TrainingSummary

MORE_ENDLESS = 0.25
"""Of eight answers two more are worth a word."""
SPELLED = {"simpo": "SimPO", "reward": "training"}


def headline(before: Scores, after: Scores, summary: TrainingSummary) -> dict[str, float]:
    """What the manifest keeps; figures of the SFT model begin with "sft_"."""
    low, high = after.pairs.interval
    return {
        **curve_points(after),
        **{f"sft_{name}": value for name, value in curve_points(before).items()},
        "validation_accuracy_low": low,
        "validation_accuracy_high": high,
        "num_validation_pairs": float(after.pairs.num_pairs),
        "chosen_tokens": after.pairs.chosen_tokens,
        "rejected_tokens": after.pairs.rejected_tokens,
        "bits_per_byte_increase": after.bits_per_byte - before.bits_per_byte,
        "train_pairs": float(summary.num_targets),
        "pairs_per_second": summary.tokens_per_second,
    }


def report(
    config: DpoConfig, before: Scores, after: Scores, summary: TrainingSummary, session: StageSession
) -> None:
    """Tables before and after, by kind and of the fixed prompts; charts of margin, likelihood and drift."""
    name = SPELLED.get(config.method, config.method.upper())
    _before_after(name, before, after, session)
    warn_of_endless_answers(config, before, after, session)
    _by_kind(after, session)
    texts = ({**scores.said.documents, **scores.said.chats} for scores in (before, after))
    side_by_side("dpo_prompts", f"after {name}", *texts, session)
    session.chart(
        "dpo_margin",
        title="By how much the chosen answer gained on the rejected one",
        x_label="step",
        y_label="margin, nats",
        series={
            "training": summary.history.get("margin", []),
            "held out": _curve(before.pairs.margin, "validation_margin", summary),
        },
    )
    _likelihood(before, summary, session)
    session.chart(
        "dpo_kl",
        title="How far the policy is from the reference on held-out chosen answers",
        x_label="step",
        y_label="KL(reference || policy), nats per token",
        series={"held out": _curve(before.kl, "validation_kl", summary)},
    )


def _curve(first: float, name: str, summary: TrainingSummary) -> list[list[float]]:
    return [[0, first], *summary.history.get(name, [])]


def _before_after(name: str, before: Scores, after: Scores, session: StageSession) -> None:
    both = (before, after)
    rows = [
        ["margin, nats", *(round(s.pairs.margin, 4) for s in both)],
        ["accuracy", *(accuracy(s.pairs) for s in both)],
        ["chosen likelier per token", *(_likelier(s.pairs) for s in both)],
        ["chosen answer, nats", *(round(s.pairs.chosen_log_prob, 2) for s in both)],
        ["rejected answer, nats", *(round(s.pairs.rejected_log_prob, 2) for s in both)],
        ["chosen answer, nats per token", *(round(s.pairs.chosen_log_prob_per_token, 4) for s in both)],
        ["rejected answer, nats per token", *(round(s.pairs.rejected_log_prob_per_token, 4) for s in both)],
        ["KL from the reference, nats per token", *(round(s.kl, 4) for s in both)],
        ["tokens of a chosen answer", *(round(s.pairs.chosen_tokens, 1) for s in both)],
        ["tokens of a rejected answer", *(round(s.pairs.rejected_tokens, 1) for s in both)],
        ["tokens of the model's own answer", *(round(s.said.answer_tokens, 1) for s in both)],
        ["its answers without an end", *(f"{s.said.endless_answers:.0%}" for s in both)],
        ["bits per byte of documents", *(round(s.bits_per_byte, 4) for s in both)],
    ]
    session.table(
        "dpo_before_after",
        ["on held-out data", "after SFT", f"after {name}"],
        rows,
        caption="Against a reference, margin and accuracy begin at 0 and 0.5. Intervals are 95 %. The KL is "
        "Schulman's k3 on the tokens of held-out chosen answers.",
    )


def warn_of_endless_answers(config: DpoConfig, before: Scores, after: Scores, session: StageSession) -> None:
    """Pairs do not see it: an answer that is unlikely to end can still win against a worse one."""
    shares = [scores.said.endless_answers for scores in (before, after)]
    if shares[1] > shares[0] + MORE_ENDLESS:
        session.warn(
            f"{shares[1]:.0%} of the answers to held-out prompts do not end within {config.answer_tokens} "
            f"tokens, before it were {shares[0]:.0%}: {advice(config, 'likely')}"
        )


def _by_kind(after: Scores, session: StageSession) -> None:
    session.table(
        "dpo_by_kind",
        ["kind of pair", "pairs", "margin, nats", "accuracy"],
        [
            [kind, score.num_pairs, round(score.margin, 4), accuracy(score)]
            for kind, score in after.by_kind.items()
        ],
    )


def side_by_side(
    table: str, column: str, before: Mapping[str, str], after: Mapping[str, str], session: StageSession
) -> None:
    """The fixed prompts, what the SFT model writes to each, and what the tuned one does."""
    session.table(
        table,
        ["prompt", "after SFT", column],
        [[prompt, text, after[prompt]] for prompt, text in before.items()],
        caption="The same prompts before and after, each with the likeliest tokens.",
    )


def _likelihood(before: Scores, summary: TrainingSummary, session: StageSession) -> None:
    of_pairs = before.pairs
    session.chart(
        "dpo_log_probs",
        title="How likely the answers are: both may fall, and then the margin alone looks well",
        x_label="step",
        y_label="log-probability, nats per token",
        series={
            "chosen, training": summary.history.get("chosen_log_prob_per_token", []),
            "rejected, training": summary.history.get("rejected_log_prob_per_token", []),
            "chosen, held out": _curve(
                of_pairs.chosen_log_prob_per_token, "validation_chosen_log_prob_per_token", summary
            ),
            "rejected, held out": _curve(
                of_pairs.rejected_log_prob_per_token, "validation_rejected_log_prob_per_token", summary
            ),
        },
    )


def accuracy(score: PairScore) -> str:
    """With its interval and the number of pairs."""
    return share_with_interval(score.accuracy, score.interval, score.num_pairs)


def _likelier(score: PairScore) -> float:
    return round(score.num_chosen_likelier / score.num_pairs, 3)
