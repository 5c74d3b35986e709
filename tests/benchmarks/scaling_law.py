"""The law L(N, D) = E + A / N^a + B / D^b, fitted to measured runs: Hoffmann et al. 2022, arXiv:2203.15556.

With a dozen small runs the exponents are hardly determined, so two laws are fitted: one with free exponents
(the best of a grid), one with the exponents that Besiroglu et al. 2024, arXiv:2404.10102, found for the
published runs. For given exponents the rest is linear, and solved with non-negative least squares on relative
errors.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

PUBLISHED_EXPONENTS = (0.3478, 0.3658)
GRID = tuple(round(0.05 * step, 2) for step in range(4, 15))
"""0.20 to 0.70: published ones are between 0.28 and 0.37. Below 0.2 a power is hardly told from a floor."""


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


def fit(points: Sequence[Point], exponents: tuple[float, float] | None = None) -> Law:
    """The law with these exponents, or with the best of a grid. Raises ValueError for fewer than 4 points."""
    if len(points) < 4:
        raise ValueError(f"{len(points)} points do not determine a law")
    pairs = [exponents] if exponents else list(itertools.product(GRID, GRID))
    return min((_linear_fit(points, *pair) for pair in pairs), key=lambda law: law.error(points))


def _linear_fit(points: Sequence[Point], params_exponent: float, tokens_exponent: float) -> Law:
    loss = np.array([point.loss for point in points])
    columns = np.array(
        [[1.0, point.params**-params_exponent, point.tokens**-tokens_exponent] for point in points]
    )
    scales = columns.max(axis=0)
    solved, _ = nnls(columns / scales / loss[:, None], np.ones(len(points)))
    floor, params_scale, tokens_scale = (float(value) for value in solved / scales)
    return Law(floor, params_scale, params_exponent, tokens_scale, tokens_exponent)
