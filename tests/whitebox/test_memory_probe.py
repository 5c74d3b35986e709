"""What is counted is what lives at the same time, it grows with the rows, and a full GPU is survived."""

from __future__ import annotations

import pytest
import torch

from stages.whitebox.memory_probe import LinearMemory, PeakBytes, count_memory, largest_that_runs

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


def test_memory_is_a_line_in_the_rows() -> None:
    def step(num_rows: int) -> None:
        fixed, rows = torch.ones(100 * KIB), torch.ones(num_rows, 10 * KIB)
        (fixed.sum() + rows.sum()).item()

    line = count_memory(step)
    assert line.bytes_per_row == 40 * KIB
    assert line.fixed_bytes == pytest.approx(400 * KIB, abs=64)
    with PeakBytes() as peak:
        step(7)
    assert peak.peak_bytes == line.fixed_bytes + 7 * line.bytes_per_row


@pytest.mark.parametrize(("limit", "rows"), [(99, 0), (100, 0), (109, 0), (110, 1), (155, 5)])
def test_rows_within_a_limit(limit: float, rows: int) -> None:
    assert LinearMemory(100, 10).rows_within(limit) == rows


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
