"""The figures of the three models side by side: table, charts, headline, and the limits that must hold."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.quantize.measure import PARTS, median_ratio
from stages.quantize.spec import QuantizeConfig
from stages.runtime.errors import UserError
from stages.runtime.session import StageSession
from stages.whitebox.document_scores import DocumentScores
from stages.whitebox.intervals import Interval

FLOAT, INT8, INT4 = "float32", "int8", "int4"
MEGABYTE = 1e6


@dataclass(frozen=True)
class Findings:
    """What was measured, by name of the model: float32, int8, int4."""

    num_params: int
    scores: Mapping[str, DocumentScores]
    bytes_per_part: Mapping[str, Mapping[str, int]]
    speeds: Mapping[str, Sequence[float]]
    drift: Mapping[str, float]
    seed: int = 0

    def change(self, name: str) -> tuple[float, Interval]:
        """Bits per byte more than float32, and the interval over the same documents."""
        return self.scores[name].minus(self.scores[FLOAT], self.seed)

    def num_bytes(self, name: str) -> int:
        """Bytes of all tensors."""
        return sum(self.bytes_per_part[name].values())

    def bits_per_weight(self, name: str) -> float:
        """All stored bits, scales and norms included, per parameter."""
        return 8 * self.num_bytes(name) / self.num_params

    def tokens_per_second(self, name: str) -> float | None:
        """Median over the rounds; None when speed was not measured."""
        return statistics.median(self.speeds[name]) if self.speeds[name] else None

    def times_float(self, name: str) -> float | None:
        """Decoding speed as a multiple of float32's."""
        return median_ratio(self.speeds[name], self.speeds[FLOAT]) if self.speeds[name] else None

    def headline(self) -> dict[str, float]:
        """The figures that go into the manifest."""
        found: dict[str, float] = {}
        for name in self.scores:
            found[f"{name}_bits_per_byte"] = self.scores[name].bits_per_byte
            found[f"{name}_bytes"] = self.num_bytes(name)
            found[f"{name}_bits_per_weight"] = self.bits_per_weight(name)
            if (speed := self.tokens_per_second(name)) is not None:
                found[f"{name}_tokens_per_second"] = speed
        for name in (INT8, INT4):
            found[f"{name}_increase"] = self.change(name)[0]
            if (ratio := self.times_float(name)) is not None:
                found[f"{name}_times_float_speed"] = ratio
        return found


def show(findings: Findings, config: QuantizeConfig, session: StageSession) -> None:
    """Emit the tables and charts."""
    num_documents = len(findings.scores[FLOAT].num_bytes_I)
    num_bytes = int(findings.scores[FLOAT].num_bytes_I.sum())
    session.table(
        "quantize_result",
        [
            "weights",
            "bits per byte",
            "change",
            "95 % interval",
            "MB",
            "bits per weight",
            "tokens/s",
            "x float32",
        ],
        [_result_row(findings, name) for name in findings.scores],
        caption=f"{num_documents} held-out documents, {num_bytes:,} bytes, interval paired over documents; "
        "decoding one text, on one CPU thread",
    )
    session.table(
        "quantize_bytes",
        ["bytes of", *findings.scores],
        [[part, *(sizes[part] for sizes in findings.bytes_per_part.values())] for part in PARTS],
        caption="scales count with the weights that they scale; embeddings are 8 bits in both",
    )
    session.chart(
        "quantize_size",
        title="Size on disk",
        x_label="weights",
        y_label="MB",
        kind="bar",
        series={
            part: [[name, sizes[part] / MEGABYTE] for name, sizes in findings.bytes_per_part.items()]
            for part in PARTS
        },
    )
    limits = {INT8: config.max_int8_increase, INT4: config.max_int4_increase}
    changes = {name: findings.change(name) for name in limits}
    session.chart(
        "quantize_change",
        title="What the integers cost",
        x_label="weights",
        y_label="change in bits per byte",
        kind="bar",
        series={
            "measured": [[name, value, *interval] for name, (value, interval) in changes.items()],
            "limit": [[name, limit] for name, limit in limits.items()],
        },
    )


def check_limits(findings: Findings, config: QuantizeConfig) -> None:
    """Raise UserError where a model lost more than the configuration allows."""
    remedies = {
        INT8: "look at quantize_result for what else changed",
        INT4: 'set [quantize] group_size = 32 and int4_method = "gptq", or more calibration_tokens',
    }
    for name, limit in ((INT8, config.max_int8_increase), (INT4, config.max_int4_increase)):
        change, interval = findings.change(name)
        if change > limit:
            raise UserError(
                f"{name} costs {change:.4f} bits per byte (95 % interval {interval.low:.4f} to "
                f"{interval.high:.4f}), allowed are {limit}",
                hint=f"{remedies[name]}; or raise max_{name}_increase if you accept the loss",
            )


def _result_row(findings: Findings, name: str) -> list[float | str | None]:
    change, interval = findings.change(name)
    is_float = name == FLOAT
    return [
        name,
        round(findings.scores[name].bits_per_byte, 4),
        None if is_float else f"{change:+.4f}",
        None if is_float else f"{interval.low:+.4f} to {interval.high:+.4f}",
        round(findings.num_bytes(name) / MEGABYTE, 3),
        round(findings.bits_per_weight(name), 2),
        _rounded(findings.tokens_per_second(name), 0),
        _rounded(findings.times_float(name), 2),
    ]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
