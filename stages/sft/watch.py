"""What a person sees of the fine-tuning: curves, answers to the same questions, and what was forgotten."""

from __future__ import annotations

from dataclasses import dataclass

from stages.runtime.session import StageSession
from stages.sft.held_out_chats import ChatScore, score_chats
from stages.sft.spec import SftConfig
from stages.whitebox.batches import TokenShards
from stages.whitebox.chat_format import TOOL_CALL
from stages.whitebox.evaluation import document_bits_per_byte
from stages.whitebox.intervals import share_with_interval, wilson_interval
from stages.whitebox.model import CausalLM
from stages.whitebox.packing import PackedRows
from stages.whitebox.reply import continuation, reply
from stages.whitebox.tokenizer import Tokenizer
from stages.whitebox.trainer import TrainingSummary

POINTS_PER_CURVE = 400


@dataclass(frozen=True)
class Scores:
    """A model judged on held-out conversations and on held-out documents."""

    chats: ChatScore
    bits_per_byte: float


class Watch:
    """Measures the model and shows what goes on; it never changes the training."""

    def __init__(
        self,
        config: SftConfig,
        model: CausalLM,
        tokenizer: Tokenizer,
        held_out_rows: PackedRows,
        documents: TokenShards,
        session: StageSession,
    ) -> None:
        self.config, self.model, self.tokenizer, self.session = config, model, tokenizer, session
        self.held_out_rows, self.documents = held_out_rows, documents
        self.total_steps = 1
        self.latest: Scores | None = None
        """What the last evaluation during training found; there is one after the last step."""

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """Progress each step, a point of the curves now and then, samples where the model was evaluated."""
        loss = {"loss": round(values["train_loss"], 3)} if "train_loss" in values else {}
        speed = {"targets_per_second": round(values["tokens_per_second"])}
        self.session.progress(step, self.total_steps, "steps", **loss, **speed)
        evaluated = "validation_loss" in values
        if evaluated or step % max(1, self.total_steps // POINTS_PER_CURVE) == 0:
            self.session.metrics(step, **values)
        if evaluated:
            self.sample(step)

    def measure(self) -> Scores:
        """Score all held-out conversations and documents."""
        chats = score_chats(self.model, self.held_out_rows, self.tokenizer.special_id(TOOL_CALL))
        forgotten = document_bits_per_byte(self.model, self.documents, self.config.validation_documents)
        return Scores(chats, forgotten)

    def evaluate(self) -> dict[str, float]:
        """The curve points of `measure`."""
        scores = self.latest = self.measure()
        return {
            "validation_loss": scores.chats.loss,
            "exact_tool_calls": scores.chats.exact_calls,
            "validation_bits_per_byte": scores.bits_per_byte,
        }

    def sample(self, step: int) -> None:
        """Continue the documents' beginnings, answer the questions."""
        for prompt in self.config.sample_prompts:
            text = continuation(self.model, self.tokenizer, prompt, self.config.sample_tokens)
            self.session.sample(prompt, text, step=step)
        for prompt in self.config.chat_prompts:
            messages = [{"role": "user", "content": prompt}]
            text = reply(self.model, self.tokenizer, messages, self.config.sample_tokens)
            self.session.sample(prompt, text, step=step, kind="chat")

    def report(self, before: Scores, after: Scores, summary: TrainingSummary) -> None:
        """The table before and after, and the chart of the losses."""
        self.session.table(
            "sft_before_after",
            ["on held-out data", "base", "after SFT"],
            [
                ["loss on the assistant's words", _round(before.chats.loss), _round(after.chats.loss)],
                ["tool calls written exactly", _share(before.chats), _share(after.chats)],
                ["other turns written exactly", *(_round(s.chats.exact_answers) for s in (before, after))],
                ["bits per byte of documents", _round(before.bits_per_byte), _round(after.bits_per_byte)],
            ],
            caption="Exactly: greedy decoding writes every token as in the conversation. Intervals are 95 %.",
        )
        history = summary.history
        self.session.chart(
            "sft_loss",
            title="Loss on the assistant's words",
            x_label="step",
            y_label="nats per token",
            series={
                "training": history.get("train_loss", []),
                "held out": [[0, before.chats.loss], *history.get("validation_loss", [])],
            },
        )


def _round(value: float) -> float:
    return round(value, 4)


def _share(score: ChatScore) -> str:
    if score.num_calls == 0:
        return "no tool calls"
    interval = wilson_interval(score.num_exact_calls, score.num_calls)
    return share_with_interval(score.exact_calls, interval, score.num_calls)
