"""What a person sees of a training: curves, samples, progress, and the charts at the end."""

from __future__ import annotations

import torch

from stages.pretrain.inside import draw_attention, draw_layers, is_of_a_layer, layer_values
from stages.pretrain.recipe import Recipe
from stages.pretrain.references import References, documents_within
from stages.pretrain.spec import PretrainConfig
from stages.pretrain.speed import better_peak, peak_of
from stages.runtime.session import StageSession
from stages.whitebox.batches import TokenShards
from stages.whitebox.device import Device
from stages.whitebox.evaluation import HeldOut, evaluate_bits_per_byte
from stages.whitebox.generate import generate
from stages.whitebox.model import CausalLM
from stages.whitebox.one_process import OneProcess
from stages.whitebox.tokenizer import Tokenizer
from stages.whitebox.trainer import TrainingSummary

POINTS_PER_CURVE = 400
EVALUATION_ROW_TOKENS = 4096


class Watch:
    """Measures the model on held-out text and shows what goes on; it never changes the training."""

    def __init__(
        self,
        config: PretrainConfig,
        recipe: Recipe,
        model: CausalLM,
        validation: TokenShards,
        tokenizer: Tokenizer,
        device: Device,
        session: StageSession,
        processes: OneProcess,
    ) -> None:
        self.processes = processes
        self.config, self.recipe, self.model, self.session = config, recipe, model, session
        self.validation, self.tokenizer, self.device = validation, tokenizer, device
        self.peak = peak_of(device.device, device.compute_dtype)
        self.report_every = max(1, recipe.total_steps // POINTS_PER_CURVE)
        self.continued: dict[str, str] = {}
        """Sample prompt -> what the model wrote behind it when it was evaluated last."""

    def before(self) -> None:
        """Held-out figures of a model to go on from, before it is trained: its own."""
        if not self.config.continue_from:
            return
        held_out = self.held_out(self.config.validation_tokens)
        values = {"validation_loss": held_out.loss, "validation_bits_per_byte": held_out.bits_per_byte}
        self.session.metrics(0, **values)
        self.session.log(f"before training: held-out bits per byte {held_out.bits_per_byte:.3f}")

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """Progress each step, a point of the curves now and then, samples where the model was evaluated."""
        loss = {"loss": round(values["train_loss"], 3)} if "train_loss" in values else {}
        speed = {"tokens_per_second": round(values["tokens_per_second"])}
        self.session.progress(step, self.recipe.total_steps, "steps", **loss, **speed)
        evaluated = "validation_loss" in values
        if evaluated or step % self.report_every == 0:
            shown = {name: value for name, value in values.items() if not is_of_a_layer(name)}
            self.session.metrics(step, **shown, mfu=self.mfu(values["tokens_per_second"]))
        if evaluated:
            for prompt, text in self.continued.items():
                self.session.sample(prompt, text, step=step)

    def evaluate(self) -> dict[str, float]:
        """Held-out figures on the way, of the averaged weights where there are such; so are the samples.

        The peak is measured again too, so that MFU has a fair one.
        """
        self.peak = better_peak(self.peak, self.device.device, self.device.compute_dtype)
        held_out = self.held_out(self.config.validation_tokens)
        self.continued = {prompt: self._continue(prompt) for prompt in self.config.sample_prompts}
        return {
            "validation_loss": held_out.loss,
            "validation_bits_per_byte": held_out.bits_per_byte,
            **self._layers(),
        }

    def _layers(self) -> dict[str, float]:
        """Of a model that is spread over several processes no layer is whole in any of them."""
        if _has_company():
            return {}
        return layer_values(self.model, self.validation, self.recipe.context_tokens)

    def held_out(self, max_tokens: int) -> HeldOut:
        """The model's loss on about so much held-out text, each document on its own."""
        return evaluate_bits_per_byte(
            self.model,
            self.validation,
            max_documents=documents_within(self.validation, max_tokens),
            batch_size=max(1, EVALUATION_ROW_TOKENS // self.recipe.context_tokens),
            context_tokens=self.recipe.context_tokens,
        )

    def mfu(self, tokens_per_second: float) -> float:
        """Model FLOPs utilisation: the share of all devices' peak that went into the model's arithmetic."""
        flops = self.recipe.model.flops_per_token(self.recipe.context_tokens)
        return tokens_per_second * flops / (self.peak.flops_per_second * self.processes.size)

    def _continue(self, prompt: str) -> str:
        room = self.recipe.context_tokens - 1
        prompt_ids = [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)][:room]
        new_ids = generate(
            self.model,
            prompt_ids,
            max_new_tokens=self.config.sample_tokens,
            stop_ids=[self.tokenizer.eos_id],
        )
        return self.tokenizer.decode(new_ids)

    def draw(self, summary: TrainingSummary, references: References) -> None:
        """The charts of the run with the lines to judge it by, and those of the inside of the model."""
        history, last_step = summary.history, summary.steps
        loss_series = {
            "training": history.get("train_loss", []),
            "held out": history.get("validation_loss", []),
            "token frequencies only": _level(references.unigram_loss, last_step),
            "uniform": _level(references.uniform_loss, last_step),
        }
        self.session.chart(
            "pretrain_loss",
            title="Loss of the base model",
            x_label="step",
            y_label="nats per token",
            series=loss_series,
        )
        self.session.chart(
            "pretrain_bits_per_byte",
            title="Held-out text against compressors",
            x_label="step",
            y_label="bits per byte",
            series={
                "model": history.get("validation_bits_per_byte", []),
                "gzip -9": _level(references.gzip_bits_per_byte, last_step),
                "xz -9": _level(references.xz_bits_per_byte, last_step),
            },
        )
        draw_layers(history, self.session)
        if not _has_company():
            draw_attention(self.model, self.tokenizer, self.config.attention_prompt, self.session)


def _has_company() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _level(value: float, last_step: int) -> list[list[float]]:
    return [[1, value], [last_step, value]]
