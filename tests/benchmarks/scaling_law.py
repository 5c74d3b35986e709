"""The law L(N, D) = E + A / N^a + B / D^b, fitted to measured runs: Hoffmann et al. 2022, arXiv:2203.15556.

A dozen small runs hardly determine it. Above all they say nothing of the floor E, which is what large models
come near to: any floor from 0 to 1.4 bits per byte fitted them equally well. So several kinds of law are
fitted: with the floor or the exponents of the published runs (as Besiroglu et al. 2024, arXiv:2404.10102,
found them), with no floor, and with everything free. For given exponents the rest is linear, and solved with
non-negative least squares on relative errors; exponents that are not given are the best of a grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

PUBLISHED_EXPONENTS = (0.3478, 0.3658)
PUBLISHED_FLOOR = 1.817 / (math.log(2) * 10.5e12 / 2.35e12)
"""Bits per byte: 1.817 nats per token of MassiveText, 10.5 TB in 2.35e12 tokens (arXiv:2112.11446, table 2)."""
GRID = tuple(round(0.02 * step, 2) for step in range(3, 36))
"""0.06 to 0.70: published ones are between 0.28 and 0.37."""
LEAST_BESIDE_A_FREE_FLOOR = 0.2
"""Below it a power is hardly told from a floor."""


@dataclass(frozen=True)
class Point:
    """A run: parameters in the layers, tokens trained on, bits per byte reached."""

    params: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Law:
    """E, A, a, B, b."""

    floor: float
    params_scale: float
    params_exponent: float
    tokens_scale: float
    tokens_exponent: float

    def __call__(self, params: float, tokens: float) -> float:
        """Bits per byte that the law expects."""
        return (
            self.floor
            + self.params_scale / params**self.params_exponent
            + self.tokens_scale / tokens**self.tokens_exponent
        )

    def __str__(self) -> str:
        return (
            f"{self.floor:.3f} + {self.params_scale:.4g} / N^{self.params_exponent:.3g} "
            f"+ {self.tokens_scale:.4g} / D^{self.tokens_exponent:.3g}"
        )

    def error(self, points: Sequence[Point]) -> float:
        """Root mean square of the relative errors."""
        errors = [self(point.params, point.tokens) / point.loss - 1 for point in points]
        return float(np.sqrt(np.mean(np.square(errors))))


def fit(
    points: Sequence[Point], exponents: tuple[float, float] | None = None, floor: float | None = None
) -> Law:
    """The law with these exponents and this floor, or with the best. Raises ValueError for fewer than 4 points."""
    if len(points) < 4:
        raise ValueError(f"{len(points)} points do not determine a law")
    grid = [x for x in GRID if floor is not None or x >= LEAST_BESIDE_A_FREE_FLOOR]
    pairs = [exponents] if exponents else list(itertools.product(grid, grid))
    return min((_linear_fit(points, *pair, floor) for pair in pairs), key=lambda law: law.error(points))


def _linear_fit(
    points: Sequence[Point], params_exponent: float, tokens_exponent: float, floor: float | None
) -> Law:
    loss = np.array([point.loss for point in points])
    columns = np.array(
        [[point.params**-params_exponent, point.tokens**-tokens_exponent, 1.0] for point in points]
    )
    given = 0.0 if floor is None else floor
    columns = columns if floor is None else columns[:, :2]
    scales = columns.max(axis=0)
    solved, _ = nnls(columns / scales / loss[:, None], (loss - given) / loss)
    params_scale, tokens_scale, *free = (float(value) for value in solved / scales)
    return Law(free[0] if free else given, params_scale, params_exponent, tokens_scale, tokens_exponent)
