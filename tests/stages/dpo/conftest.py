"""Preference pairs about lamps, and running the DPO stage on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_contracts import PREFERENCES
from data_contracts.tables import write_part
from stages.dpo.run import run
from stages.dpo.spec import DpoConfig

QUICK: dict[str, Any] = {
    "epochs": 6.0,
    "batch_pairs": 8,
    "micro_batch_pairs": 4,
    "learning_rate": 3e-3,
    "validation_documents": 2,
    "sample_prompts": ("The",),
    "chat_prompts": ("Hi",),
    "sample_tokens": 4,
    "evaluations": 2,
    "num_threads": 1,
}
OF_A_POLICY: dict[str, Any] = {
    "max_bits_per_byte_increase": 9.0,
    "max_kl": 1e6,
    "max_chosen_drop": 1e6,
    "answered_prompts": 2,
    "answer_tokens": 6,
}
"""For methods that change the model; a reward model heeds none of them."""


@dataclass(frozen=True)
class Tuned:
    """What a run left behind."""

    outputs: dict[str, Path]
    metrics: dict[str, float]
    events: list[dict[str, Any]]
    work: Path


def said(text: str) -> dict[str, str]:
    """A message of the assistant."""
    return {"role": "assistant", "content": text}


def pair_row(number: int) -> dict[str, Any]:
    """The keeper is right, the storm and half sentences are wrong; every fourth one is held out."""
    truncated = number % 2 == 0
    return {
        "pair_id": f"p{number:03d}",
        "source": "fixture",
        "kind": "truncated" if truncated else "wrong_answer",
        "split": "validation" if number % 4 == 0 or number % 4 == 1 else "train",
        "prompt": [{"role": "user", "content": f"Who lights lamp {number}?"}],
        "chosen": said(f"The keeper lights lamp {number}."),
        "rejected": said("The keeper lights" if truncated else f"The storm lights lamp {number}."),
    }


@pytest.fixture(scope="session")
def preferences_part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty pairs, half of them held out."""
    folder = tmp_path_factory.mktemp("preferences")
    write_part(folder, PREFERENCES, map(pair_row, range(80)))
    return folder


@pytest.fixture(scope="session")
def run_dpo(
    base_model: Any,
    preferences_part: Path,
    open_session: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Tuned]:
    """Call with config fields; `work` and `stop_after` (steps) try an interruption, `inputs` other inputs."""

    def tune(
        work: Path | None = None,
        stop_after: int | None = None,
        inputs: dict[str, Path] | None = None,
        **fields: Any,
    ) -> Tuned:
        root = tmp_path_factory.mktemp("dpo")
        (root / "model").mkdir()
        opened = open_session("dpo", work or root / "work")
        if stop_after is not None:
            polls = iter([False] * (stop_after - 1) + [True] * 999)
            opened.session.should_stop = lambda: next(polls)
        folders = {
            "preferences": preferences_part,
            "tokenizer": base_model.tokenizer_folder,
            "tokens": base_model.tokens,
            "model": base_model.model,
        }
        config = DpoConfig(**{**QUICK, **(OF_A_POLICY if fields.get("method") != "reward" else {}), **fields})
        outputs = {"model": root / "model"}
        metrics = run(config, folders | (inputs or {}), outputs, opened.session)
        return Tuned(outputs, metrics, opened.events, opened.session.work_dir)

    return tune


@pytest.fixture(scope="session")
def tuned(run_dpo: Callable[..., Tuned]) -> Tuned:
    """One quick run."""
    return run_dpo()
