"""How fast one text is decoded: ours in float32, int8 and int4 against transformers' generate.

    python tests/benchmarks/decode_speed.py [--model FOLDER] [--depth 4] [--vocab 8192] [--threads 1]

The engines take turns within each round, so that whatever else the machine does slows all of them; the ratio
is the median over rounds. Prints a Markdown table. Run by hand: timings are not tests.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from stages.quantize.calibration import quantize_nearest_everywhere
from stages.whitebox.checkpoint import load_model, save_model
from stages.whitebox.config import ModelConfig
from stages.whitebox.device import cpu_flags
from stages.whitebox.generate import generate
from stages.whitebox.model import CausalLM
from stages.whitebox.quantized_checkpoint import QuantizedLM

PROMPT_TOKENS = 8
REFERENCE = "transformers generate, float32"
Engine = Callable[[list[int], int], Sequence[int]]


def ours(model: CausalLM) -> Engine:
    return lambda prompt, count: generate(model, prompt, max_new_tokens=count, stop_ids=())


def transformers_engine(folder: Path) -> Engine:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None

    def decode(prompt: list[int], count: int) -> Sequence[int]:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        return model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False)[
            0, len(prompt) :
        ].tolist()

    return decode


def engines_of(folder: Path) -> dict[str, Engine]:
    model = load_model(folder)
    int8 = quantize_nearest_everywhere(model, 8, None)
    int4 = quantize_nearest_everywhere(model, 4, 32)
    return {
        REFERENCE: transformers_engine(folder),
        "ours, float32": ours(model),
        "ours, int8, no kernels": ours(QuantizedLM(int8, fast_decode=False)),
        "ours, int8": ours(QuantizedLM(int8)),
        "ours, int4": ours(QuantizedLM(int4)),
    }


def measure(engines: dict[str, Engine], num_tokens: int, num_rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each engine in each round; the first round warms up."""
    prompt = list(range(10, 10 + PROMPT_TOKENS))
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    with torch.no_grad():
        for number in range(num_rounds + 1):
            for name, engine in engines.items():
                start = time.perf_counter()
                count = len(engine(prompt, num_tokens))
                if number:
                    speeds[name].append(count / (time.perf_counter() - start))
    return speeds


def markdown(speeds: dict[str, list[float]]) -> str:
    lines = [
        "| engine | tokens/s (median) | slowest to fastest round | x transformers |",
        "|---|---|---|---|",
    ]
    for name, found in speeds.items():
        ratio = statistics.median(mine / base for mine, base in zip(found, speeds[REFERENCE], strict=True))
        spread = f"{min(found):.0f} to {max(found):.0f}"
        lines.append(f"| {name} | {statistics.median(found):.0f} | {spread} | {ratio:.2f} |")
    return "\n".join(lines)


def describe(config: ModelConfig) -> str:
    units = sorted(cpu_flags() & {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"})
    size = f"{config.num_params() / 1e6:.1f} M parameters, vocabulary {config.vocab_size}"
    shape = f"{config.num_hidden_layers} layers of {config.hidden_size}"
    return f"{size}, {shape}; {platform.machine()} ({', '.join(units)}), torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a float checkpoint; random weights when left out")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or Path(scratch)
        if options.model is None:
            torch.manual_seed(0)
            save_model(CausalLM(ModelConfig.from_depth(options.depth, options.vocab)), folder)
        config = load_model(folder).config
        speeds = measure(engines_of(folder), options.tokens, options.rounds)
    print(f"{describe(config)}; {options.threads} thread(s); {options.rounds} rounds of {options.tokens}\n")
    print(markdown(speeds))


if __name__ == "__main__":
    main()
