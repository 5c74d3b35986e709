"""How RoPE is stretched to texts longer than a model was trained on, as `config.json` says it.

No torch here: settings only. The frequencies that follow from them are in `rope.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

KINDS = ("linear", "dynamic", "llama3", "yarn")
_NEEDS = {"llama3": ("low_freq_factor", "high_freq_factor"), "linear": (), "dynamic": (), "yarn": ()}


@dataclass(frozen=True)
class RopeScaling:
    """One of four ways, with Hugging Face's field names.

    | rope_type | what it does                                                       | source           |
    |-----------|--------------------------------------------------------------------|------------------|
    | linear    | every position divided by `factor`                                 | arXiv:2306.15595 |
    | dynamic   | a larger base, by the length of the text at hand (NTK-aware)       | arXiv:2309.00071 |
    | llama3    | slow pairs divided by `factor`, fast ones kept, between smoothly   | arXiv:2407.21783 |
    | yarn      | the same by a ramp over the pairs, and scores made sharper         | arXiv:2309.00071 |

    Raises:
        ValueError: another kind, a field that the kind needs is missing, or a factor below 1.
    """

    rope_type: str
    factor: float
    original_max_position_embeddings: int | None = None
    """Positions of the training; llama3 and yarn measure a pair's turns over these."""
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    """yarn: cosines and sines times this; None is the paper's 0.1 ln(factor) + 1."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    """yarn: whether the ramp begins and ends at whole pairs."""

    def __post_init__(self) -> None:
        if self.rope_type not in KINDS:
            raise ValueError(
                f"rope_type = {self.rope_type!r}; this model computes default, {', '.join(KINDS)}"
            )
        missing = [name for name in _NEEDS[self.rope_type] if getattr(self, name) is None]
        if self.rope_type in ("llama3", "yarn") and self.original_max_position_embeddings is None:
            missing.append("original_max_position_embeddings")
        if missing:
            raise ValueError(f"RoPE of type {self.rope_type} lacks {', '.join(missing)}")
        if not self.factor >= 1:
            raise ValueError(f"RoPE's factor is {self.factor}, expected 1 or more")

    def score_scale(self) -> float:
        """What cosines and sines are multiplied by; scores grow with its square."""
        if self.rope_type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return _log_scale(self.factor, self.mscale) / _log_scale(self.factor, self.mscale_all_dim)
        return _log_scale(self.factor, 1.0)

    def to_hf(self) -> dict[str, Any]:
        """The fields of `rope_parameters` that are set, without the base."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.rope_type != "yarn":
            del found["truncate"]
        return {name: value for name, value in found.items() if value is not None}


def rope_base(config_json: Mapping[str, Any]) -> float:
    """`rope_theta`, which transformers 5 keeps inside `rope_parameters`; 10,000 where nobody says."""
    inner = _rope_fields(config_json).get("rope_theta")
    return float(inner if inner is not None else config_json.get("rope_theta") or 10_000.0)


def read_rope_scaling(config_json: Mapping[str, Any]) -> RopeScaling | None:
    """The scaling that a `config.json` asks for, or None.

    Raises:
        ValueError: a kind that this model has not, or one whose fields are missing.
    """
    found = _rope_fields(config_json)
    kind = found.get("rope_type", found.get("type", "default"))
    share = found.get("partial_rotary_factor", config_json.get("partial_rotary_factor"))
    if share not in (None, 1, 1.0):
        raise ValueError(f"partial_rotary_factor = {share}; this model turns whole heads")
    if kind == "default":
        return None
    known = {field.name for field in fields(RopeScaling)} - {"rope_type"}
    values = {name: value for name, value in found.items() if name in known and value is not None}
    positions = config_json.get("max_position_embeddings")
    if kind in ("llama3", "yarn"):
        values["original_max_position_embeddings"] = (
            config_json.get("original_max_position_embeddings")
            or values.get("original_max_position_embeddings")
            or positions
        )
    if kind == "yarn" and "factor" not in values and positions:
        values["factor"] = positions / values["original_max_position_embeddings"]
    if "factor" not in values:
        raise ValueError(f"RoPE of type {kind} lacks factor")
    return RopeScaling(kind, **values)


def _rope_fields(config_json: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config_json.get("rope_parameters") or config_json.get("rope_scaling") or {}
    by_layer_type = [value for value in found.values() if isinstance(value, Mapping)]
    if by_layer_type and any(value != by_layer_type[0] for value in by_layer_type):
        raise ValueError("config.json has another RoPE for each kind of layer; this model has one for all")
    return by_layer_type[0] if by_layer_type else found


def _log_scale(factor: float, slope: float) -> float:
    return 0.1 * slope * math.log(factor) + 1.0 if factor > 1 else 1.0
