"""Does learning by reward help? Held-out arithmetic before and after, over seeds, on a built model.

    glassworks build                                            (the laptop preset; about ten minutes)
    python tests/benchmarks/grpo_effect.py --store STORE [--seeds 0 1 2] [--set updates=60 method=ppo]
                                           [--models SFT_MODEL SFT_MODEL SFT_MODEL]

A seed decides tasks, held-out tasks and samples; with --models each has an SFT model of its own seed, such as those
that `alignment_effect.py` leaves in STORE/effect. Half of the held-out tasks are phrased as no training ever
phrases them. One thread; CPU seconds with all evaluations. Before and after differ by more than luck where
their 95 % intervals do not overlap, and over seeds where the interval of the gain lies above 0.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from muon_against_adamw import interval

from stages.dpo.run import run
from stages.dpo.spec import DpoConfig
from stages.runtime.events import EventLog, read_events
from stages.runtime.session import StageSession

INPUTS = {
    "preferences": "corpus_prep",
    "scenarios": "corpus_prep",
    "tokenizer": "tokenizer",
    "tokens": "tokenizer",
    "model": "sft",
}
SHOWN = (
    "tasks with the right answer",
    "phrased as in conversations",
    "phrased as never in training",
    "mean reward",
    "KL from SFT, nats per token",
    "bits per byte of documents",
)


def newest(store: Path, stage: str, part: str) -> Path:
    """The part of the artifact that was built last."""
    found = sorted((store / "artifacts" / stage).glob(f"*/{part}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SystemExit(f"{store} has no {stage} with {part}: glassworks build --store {store}")
    return found[-1]


def value_of(text: str) -> Any:
    """A setting as TOML would read it."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def learn(
    inputs: dict[str, Path], settings: dict[str, Any]
) -> tuple[list[list[str]], dict[str, float], float]:
    """One run: its table before and after, its metrics, and CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        work, out = Path(folder) / "work", Path(folder) / "model"
        out.mkdir()
        log = EventLog(work / "events.jsonl", as_json=True, stream=io.StringIO())
        started = time.process_time()
        metrics = run(DpoConfig(**settings), inputs, {"model": out}, StageSession("dpo", work, log))
        seconds = time.process_time() - started
        table = next(
            e for e in read_events(log.path) if e["event"] == "table" and "before_after" in e["name"]
        )
        return table["rows"], metrics, seconds


def main() -> None:
    """Print a table per seed, and what they say together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE")
    parser.add_argument(
        "--models", type=Path, nargs="+", help="SFT models, one per seed; else the store's newest"
    )
    options = parser.parse_args()
    if options.models and len(options.models) != len(options.seeds):
        parser.error(
            f"{len(options.models)} models and {len(options.seeds)} seeds; expected one model per seed"
        )
    parts = {part: stage for part, stage in INPUTS.items() if part != "model"}
    inputs = {part: newest(options.store, stage, part) for part, stage in parts.items()}
    models = options.models or [newest(options.store, "sft", "model")] * len(options.seeds)
    fields = {name: value_of(text) for name, text in (pair.split("=", 1) for pair in options.set)}
    settings = {"method": "grpo", "num_threads": 1, "on_degradation": "warn", **fields}
    gains = []
    for seed, model in zip(options.seeds, models, strict=True):
        rows, metrics, seconds = learn({**inputs, "model": model}, {**settings, "seed": seed})
        print(f"\nseed {seed}, {seconds:.0f} CPU seconds{'':14} after SFT{'':26} after {settings['method']}")
        for row in rows:
            if row[0] in SHOWN:
                print(f"  {row[0]:30} {row[1]!s:35} {row[2]!s}", flush=True)
        gains.append(metrics["validation_success"] - metrics["sft_validation_success"])
    shown = ", ".join(f"{gain:+.3f}" for gain in gains)
    print(f"\ngain in held-out success over seeds: {shown}")
    if len(gains) > 1:
        mean, low, high = interval(gains)
        print(f"mean {mean:+.3f} ({low:+.3f} to {high:+.3f}, Student's 95 % over seeds)")


if __name__ == "__main__":
    main()
