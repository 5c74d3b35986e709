"""DPO: tokens of real text per second and memory, ours against TRL with and without a loaded reference.

    python tests/benchmarks/dpo_speed.py                          a generated set
    python tests/benchmarks/dpo_speed.py pairs.parquet            columns instruction, input, chosen, rejected

Same pairs as the same ids, same weights, same pairs of an update, type of the products (bfloat16 where the CPU
multiplies it) and threads. A pair's tokens of real text are those of both conversations, the prompt counted in each, for
everyone. The last column holds the mean log-probabilities of the first eight chosen and rejected answers before any
update: in float32 it shows that all do the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from finetune_contenders import our_dpo, trl_dpo
from finetune_turns import Examples, add_options, compare, evenly, generated_words, pick

from stages.dpo.pairs import complete
from stages.whitebox.tokenizer import Tokenizer

CONTENDERS: dict[str, Any] = {
    "TRL, reference loaded": trl_dpo,
    "TRL, reference loaded, grouped by length": partial(trl_dpo, grouped=True),
    "TRL, reference precomputed, grouped by length": partial(trl_dpo, precomputed=True, grouped=True),
    "ours": our_dpo,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, rows=16, examples=96)
    options = parser.parse_args()
    everything = generated(2000) if options.data is None else read(options.data)
    rows = evenly(everything, options.examples)
    texts = [text for row in everything for text in row]

    def examples_of(tokenizer: Tokenizer) -> Examples:
        found = (as_ids(row, tokenizer) for row in rows)
        fitting = [each for each in found if _length(each) <= options.context_tokens]
        return fitting[: len(fitting) // options.rows * options.rows]  # whole updates: no pair falls out

    compare(options, pick(CONTENDERS, options.who), texts, examples_of, text_tokens)


def read(path: Any) -> list[tuple[str, str, str]]:
    """All pairs that differ: prompt, chosen, rejected."""
    columns = ["instruction", "input", "chosen", "rejected"]
    rows = [
        row for row in pq.read_table(path, columns=columns).to_pylist() if row["chosen"] != row["rejected"]
    ]
    return [(f"{row['instruction']}\n{row['input']}".strip(), row["chosen"], row["rejected"]) for row in rows]


def generated(count: int) -> list[tuple[str, str, str]]:
    """Made-up prompts and answers of differing lengths."""
    generator = np.random.default_rng(0)
    return [
        (
            generated_words(generator, 5, 60),
            generated_words(generator, 5, 100),
            generated_words(generator, 5, 100),
        )
        for _ in range(count)
    ]


def as_ids(row: tuple[str, str, str], tokenizer: Tokenizer) -> dict[str, list[int]]:
    """A pair as our stage renders it."""
    prompt = [{"role": "user", "content": row[0]}]
    chosen, rejected = (
        complete(prompt, {"role": "assistant", "content": text}, tokenizer) for text in row[1:]
    )
    return {
        "prompt_ids": chosen.ids[: chosen.start],
        "chosen_ids": chosen.ids[chosen.start :],
        "rejected_ids": rejected.ids[rejected.start :],
    }


def _length(pair: Mapping[str, list[int]]) -> int:
    return len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))


def text_tokens(pair: Mapping[str, list[int]]) -> int:
    """Of both conversations."""
    return 2 * len(pair["prompt_ids"]) + len(pair["chosen_ids"]) + len(pair["rejected_ids"])


if __name__ == "__main__":
    main()
