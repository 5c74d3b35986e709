"""How many bytes a token stands for, on held-out text: our two word schemes, plain SentencePiece, tokenizers.

    python tests/benchmarks/tokenizer_quality.py FOLDER [--megabytes 80] [--vocab-size 32000] [--without-peers]

FOLDER holds Parquet files with texts; the documentation of this Python is added. All vocabularies are learned
from the same sample and judged on the same texts. Prints Markdown tables. Run by hand.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import sentencepiece
import tokenizer_texts as texts_of

from stages.tokenizer.alphabet import Coverage
from stages.tokenizer.quality import idle_pieces
from stages.tokenizer.training import Recipe, train_sentencepiece
from stages.whitebox.tokenizer import Tokenizer

Count = Callable[[list[str]], int]
NANOCHAT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
STATED = (
    "Stated elsewhere on other text: LLaMA-2 3.10 English and 2.23 Chinese, tiny-llm-zh's merged 50k 3.24 and "
    "3.38, ChatGLM3's 65k 3.09 and 3.34."
)


def ours(scheme: str, coverage: Coverage) -> Callable[[list[str], int], Count]:
    """Train with our stage's code."""

    def train(texts: list[str], vocab_size: int) -> Count:
        recipe = Recipe(coverage, word_scheme=scheme)  # type: ignore[arg-type]
        tokenizer = Tokenizer(train_sentencepiece(texts, vocab_size, recipe=recipe))
        counts = [0] * vocab_size
        for batch in (texts[at : at + 64] for at in range(0, len(texts), 64)):
            for ids in tokenizer.encode_batch(batch):
                for token in ids:
                    counts[token] += 1
        idle = idle_pieces(tokenizer, counts)
        dead = sum(piece["kind"] == "dead" for piece in idle)
        print(f"{scheme}: {dead} dead pieces, {len(idle) - dead} that the sample never uses")
        return lambda held: sum(map(len, tokenizer.encode_batch(held)))

    return train


def llama_flags(texts: list[str], vocab_size: int) -> Count:
    """SentencePiece as LLaMA and tiny-llm-zh call it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.split("\n") if line),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=0.9995,
        max_sentence_length=16_384,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return lambda held: sum(map(len, processor.encode(held)))


def byte_level(texts: list[str], vocab_size: int) -> Count:
    """Hugging Face's byte-level BPE with nanochat's expression, digits split."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(NANOCHAT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    return lambda held: sum(len(e.ids) for e in tokenizer.encode_batch_fast(held))


def main() -> None:
    """Train, judge, print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--megabytes", type=float, default=80.0)
    arguments.add_argument("--vocab-size", type=int, default=32_000)
    arguments.add_argument("--coverage", type=float, default=0.999)
    arguments.add_argument("--without-peers", action="store_true")
    options = arguments.parse_args()
    train, held = texts_of.split(texts_of.load(options.folder))
    sample = texts_of.draw(train, options.megabytes)
    print(f"learned from {texts_of.num_bytes(sample) / 1e6:.1f} MB, {options.vocab_size:,} pieces\n")
    coverage = Coverage(options.coverage)
    trainers = {"compact": ours("compact", coverage), "copyable": ours("copyable", coverage)}
    if not options.without_peers:
        trainers |= {"SentencePiece, LLaMA's flags": llama_flags, "tokenizers, byte level": byte_level}
    counters = {name: trainer(sample, options.vocab_size) for name, trainer in trainers.items()}
    tokens = {
        source: {name: count(texts) for name, count in counters.items()} for source, texts in held.items()
    }
    _print(held, tokens, list(trainers))


def _print(held: dict[str, list[str]], tokens: dict[str, dict[str, int]], names: list[str]) -> None:
    print(f"\n| held-out text | MB | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
    groups: dict[str, list[str]] = {}
    for source, texts in held.items():
        groups.setdefault(texts_of.group(source, texts), []).append(source)
    for name, sources in groups.items():
        for label, members in [*((f"{name}: {s}", [s]) for s in sources), (f"**{name}**", sources)]:
            size = sum(texts_of.num_bytes(held[s]) for s in members)
            cells = [f"{size / sum(tokens[s][n] for s in members):.3f}" for n in names]
            print(f"| {label} | {size / 1e6:.2f} | {' | '.join(cells)} |")
    print(f"\n{STATED}")


if __name__ == "__main__":
    main()
