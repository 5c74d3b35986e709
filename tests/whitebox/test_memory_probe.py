"""What is counted is what lives at the same time, it grows with the rows, and a full GPU is survived."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from stages.whitebox.memory_probe import PeakBytes, count_rows_that_fit, largest_that_runs
from stages.whitebox.model import CausalLM

KIB = 1024


def test_the_peak_is_of_what_lives_at_the_same_time() -> None:
    before = torch.zeros(KIB)  # 4 KiB that were there before
    with PeakBytes() as peak:
        first = before + 1
        del first
        second = before * 2
        third = second + second
        second.view(32, 32).add_(1)  # neither a view nor a change in place is new memory
        third.t_()
    assert (peak.bytes_now, peak.peak_bytes) == (8 * KIB, 8 * KIB)


def test_what_the_backward_pass_keeps_is_counted() -> None:
    x = torch.ones(KIB, requires_grad=True)
    with PeakBytes() as peak:
        y = x.exp().exp().exp()  # each keeps its result
        assert peak.bytes_now == 12 * KIB
        y.sum().backward()
        del y
    assert peak.bytes_now == 4 * KIB  # the gradient of x


def two_lines(num_rows: int) -> None:
    """100 + r KiB at the loss, then 30 r KiB in the layers: the second is the peak from four rows on."""
    loss = torch.ones(100 + num_rows, KIB, dtype=torch.uint8)
    del loss
    torch.ones(30 * num_rows, KIB, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("limit_kib", "rows"),
    [(100, 0), (101, 1), (150, 1), (239, 7), (240, 8), (300, 10), (700, 23), (10**6, 25)],
)
def test_rows_within_a_limit(limit_kib: int, rows: int) -> None:
    found = count_rows_that_fit(two_lines, limit_kib * KIB, max_rows=25)
    assert found.rows == rows
    if rows >= 8:
        assert found == (rows, 30 * KIB * rows)


def test_the_limit_is_never_exceeded_while_counting() -> None:
    tried: list[int] = []

    def step(num_rows: int) -> None:
        tried.append(num_rows)
        two_lines(num_rows)

    found = count_rows_that_fit(step, 500 * KIB, max_rows=1000)
    assert tried == [1, 2, 4, 8, 16]
    assert found.rows == 16


def test_real_layers_are_counted_as_they_are(make_model: Callable[..., CausalLM]) -> None:
    model = make_model().train()

    def step(num_rows: int) -> None:
        model(torch.zeros(num_rows, 40, dtype=torch.long)).sum().backward()
        model.zero_grad(set_to_none=True)

    limit = 8 * 2**20
    found = count_rows_that_fit(step, limit, max_rows=10**4)
    with PeakBytes() as peak:
        step(found.rows)
    assert 0.9 * limit < peak.peak_bytes <= 1.02 * limit
    assert peak.peak_bytes == pytest.approx(found.peak_bytes, rel=0.02)


def test_sizes_that_do_not_fit_are_tried_and_passed_over() -> None:
    tried: list[int] = []

    def step(num_rows: int) -> None:
        tried.append(num_rows)
        if num_rows > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert largest_that_runs(step, [1, 2, 4, 8, 16]) == 4
    assert tried == [16, 8, 4]


def test_nothing_that_fits_and_other_errors_are_raised() -> None:
    def full(_: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(_: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(torch.OutOfMemoryError):
        largest_that_runs(full, [1, 2])
    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_runs(broken, [1, 2])
