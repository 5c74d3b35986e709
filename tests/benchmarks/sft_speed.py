"""SFT: tokens of real text per second and memory, ours against TRL, packing on both sides.

    python tests/benchmarks/sft_speed.py                          a generated set
    python tests/benchmarks/sft_speed.py alpaca.parquet           columns instruction, input, output

Same conversations as the same ids, same weights (a Llama that opens in both), same context, tokens of an update,
type of the products (bfloat16 where the CPU multiplies it) and threads. The last column is the loss of the first eight
conversations before any update: in float32 it shows that all do the same.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from finetune_contenders import our_sft, trl_sft
from finetune_turns import Examples, add_options, compare, evenly, generated_words, pick

from stages.whitebox.chat_format import render
from stages.whitebox.losses import IGNORED
from stages.whitebox.tokenizer import Tokenizer

CONTENDERS: dict[str, Any] = {
    "TRL, bfd packing": partial(trl_sft, strategy="bfd"),
    "TRL, wrapped packing": partial(trl_sft, strategy="wrapped"),
    "ours": our_sft,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, rows=8, examples=128)
    options = parser.parse_args()
    everything = generated(2000) if options.data is None else read(options.data)
    rows = evenly(everything, options.examples)
    texts = [text for question, answer in everything[:10_000] for text in (question, answer)]

    def examples_of(tokenizer: Tokenizer) -> Examples:
        rendered = (as_ids(question, answer, tokenizer) for question, answer in rows)
        return [each for each in rendered if len(each["input_ids"]) <= options.context_tokens]

    compare(options, pick(CONTENDERS, options.who), texts, examples_of, lambda each: len(each["input_ids"]))


def read(path: Any) -> list[tuple[str, str]]:
    """All conversations: question with its input, answer."""
    table = pq.read_table(path, columns=["instruction", "input", "output"]).to_pylist()
    return [(f"{row['instruction']}\n{row['input']}".strip(), row["output"]) for row in table]


def generated(count: int) -> list[tuple[str, str]]:
    """Made-up questions and answers, as long as those of Alpaca."""
    generator = np.random.default_rng(0)
    return [(generated_words(generator, 5, 30), generated_words(generator, 5, 120)) for _ in range(count)]


def as_ids(question: str, answer: str, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """The conversation as our stage renders it."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    chat = render(messages, tokenizer)
    labels = [i if target else IGNORED for i, target in zip(chat.ids, chat.is_target, strict=True)]
    return {"input_ids": chat.ids, "labels": labels}


if __name__ == "__main__":
    main()
