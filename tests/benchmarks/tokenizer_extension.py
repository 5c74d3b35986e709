"""A Llama-like base extended by Chinese: our way and the usual one, new pieces with score 0.

    python tests/benchmarks/tokenizer_extension.py FOLDER [--megabytes 20] [--base 32000] [--new 18000]

The base is learned from the English half of the texts with LLaMA's flags. Prints changed ids on held-out
English, dead pieces, and bytes per token on held-out Chinese. Run by hand.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import sentencepiece
import tokenizer_texts as texts_of

from stages.tokenizer.alphabet import Coverage
from stages.tokenizer.extension import extend_model
from stages.tokenizer.sentencepiece_file import Piece, read_pieces, replace_pieces, without_dummy_prefix
from stages.tokenizer.training import NUM_FIXED_PIECES, Recipe, train_sentencepiece


def llama_like(texts: list[str], vocab_size: int) -> bytes:
    """SentencePiece as LLaMA calls it."""
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
        minloglevel=2,
    )
    return model.getvalue()


def usual_way(base: bytes, texts: list[str], num_new: int) -> bytes:
    """Learn a second model and append what is new with score 0, as published recipes do."""
    size = NUM_FIXED_PIECES + num_new
    second = train_sentencepiece(texts, size, recipe=Recipe(Coverage(0.9995), word_scheme="compact"))
    known = {piece.text for piece in read_pieces(base)}
    new = [Piece(p.text, 0.0) for p in read_pieces(second) if p.kind == 1 and p.text not in known]
    return replace_pieces(without_dummy_prefix(base), [*read_pieces(base), *new[:num_new]])


def main() -> None:
    """Learn, extend in both ways, print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--megabytes", type=float, default=20.0)
    arguments.add_argument("--base", type=int, default=32_000)
    arguments.add_argument("--new", type=int, default=18_000)
    options = arguments.parse_args()
    train, held = texts_of.split(texts_of.load(options.folder))
    english = {name: texts for name, texts in train.items() if texts_of.group(name, texts) == "English"}
    chinese = {name: texts for name, texts in train.items() if name not in english}
    base = llama_like(texts_of.draw(english, options.megabytes), options.base)
    sample = texts_of.draw(chinese, options.megabytes)
    size = options.base + options.new
    ways = {
        "base": without_dummy_prefix(base),
        "ours": extend_model(base, sample, size, ("Han",), Coverage(0.9995)),
        "score 0": usual_way(base, sample, options.new),
    }
    before = sentencepiece.SentencePieceProcessor(model_proto=base)
    # A text without Han characters is the base's language; the documents of this corpus are all of that.
    lines = [line for name in english for text in held[name] for line in text.split("\n") if line]
    spoken = [s for s in lines if not any("\u2e80" <= c <= "\u9fff" or "\uff00" <= c <= "\uffef" for c in s)]
    cut = before.encode(spoken)
    modern = [t for name in chinese if texts_of.group(name, held[name]) == "Chinese" for t in held[name]]
    print(f"{len(spoken):,} lines of English, {sum(map(len, cut)):,} tokens\n")
    print("| extension | pieces | English lines with other ids | dead pieces | bytes per token, Chinese |")
    print("|---|---|---|---|---|")
    for name, model in ways.items():
        after = sentencepiece.SentencePieceProcessor(model_proto=model)
        changed = sum(a != b for a, b in zip(cut, after.encode([f" {s}" for s in spoken]), strict=True))
        pieces = read_pieces(model)
        new = [i for i in range(options.base, len(pieces)) if pieces[i].kind == 1]
        surfaces = [pieces[i].text.replace("\u2581", " ") for i in new]
        dead = sum(ids != [i] for i, ids in zip(new, after.encode(surfaces), strict=True)) if new else 0
        ratio = texts_of.num_bytes(modern) / sum(map(len, after.encode(modern)))
        print(f"| {name} | {len(pieces):,} | {changed:,} | {dead:,} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
