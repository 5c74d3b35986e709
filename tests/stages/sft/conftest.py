"""Running the SFT stage on forty conversations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stages.sft.run import run
from stages.sft.spec import SftConfig

QUICK: dict[str, Any] = {
    "epochs": 4.0,
    "batch_tokens": 512,
    "context_tokens": 128,
    "learning_rate": 1e-2,
    "validation_documents": 2,
    "sample_prompts": ("The",),
    "chat_prompts": ("Hi",),
    "sample_tokens": 4,
    "evaluations": 2,
    "num_threads": 1,
}


@dataclass(frozen=True)
class Tuned:
    """What a run left behind."""

    outputs: dict[str, Path]
    metrics: dict[str, float]
    events: list[dict[str, Any]]
    work: Path


@pytest.fixture(scope="session")
def run_sft(
    base_model: Any,
    conversations_part: Path,
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
        root = tmp_path_factory.mktemp("sft")
        outputs = {part: root / part for part in ("model", "preview")}
        for folder in outputs.values():
            folder.mkdir()
        opened = open_session("sft", work or root / "work")
        if stop_after is not None:
            polls = iter([False] * (stop_after - 1) + [True] * 999)
            opened.session.should_stop = lambda: next(polls)
        folders = {
            "conversations": conversations_part,
            "tokenizer": base_model.tokenizer_folder,
            "tokens": base_model.tokens,
            "model": base_model.model,
        }
        config = SftConfig(**{**QUICK, **fields})
        metrics = run(config, folders | (inputs or {}), outputs, opened.session)
        return Tuned(outputs, metrics, opened.events, opened.session.work_dir)

    return tune


@pytest.fixture(scope="session")
def tuned(run_sft: Callable[..., Tuned]) -> Tuned:
    """One quick run."""
    return run_sft()


@pytest.fixture(scope="session")
def other_tokenizer(repository: Path, base_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of as many pieces as the base model's, learned from its text backwards."""
    from stages.tokenizer.bundle import write_bundle
    from stages.tokenizer.training import train_sentencepiece
    from stages.whitebox.tokenizer import Tokenizer

    text = (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")
    folder = tmp_path_factory.mktemp("other")
    size = base_model.tokenizer.vocab_size
    write_bundle(Tokenizer(train_sentencepiece([text[::-1]], size, 0.9995)), folder)
    return folder
