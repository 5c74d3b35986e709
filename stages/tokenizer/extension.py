"""New pieces for another script, appended to a SentencePiece model that is in use.

What the base model's language costs and means must not change: an id keeps its piece, and text without the
new scripts and their punctuation keeps its ids. Why it does: every new piece is made of these characters,
which the base never merges, so none can be made from text without them. Within a mixed text the new pieces
come last in the order of merges, behind every piece of the base.

A published extension that scores new pieces 0, before all of the base, cut "people" anew and left 539 of
17,953 pieces that nothing ever makes. Here a piece that is not what its own text is cut into is dropped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

import sentencepiece

from stages.runtime.errors import UserError
from stages.tokenizer.alphabet import Coverage, count_characters, rare_characters, script_of, scripts_of
from stages.tokenizer.sentencepiece_file import (
    NORMAL,
    Piece,
    read_pieces,
    read_settings,
    replace_pieces,
    without_dummy_prefix,
)
from stages.tokenizer.training import NUM_FIXED_PIECES, Recipe, Texts, train_words
from stages.tokenizer.words import short_parts
from stages.whitebox.chat_format import SPECIAL_TOKENS

CONTROL = 3
EAST_ASIAN = frozenset({"Han", "Hiragana", "Katakana", "Hangul", "Bopomofo"})
_EAST_ASIAN_PUNCTUATION = re.compile("[\u3001-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]")
BASE_PAD_PIECE = "<pad>"  # the name that a model file means when it names none
SPOKEN_FRACTION = 0.01  # a base with more merged pieces of a script was made for its languages
SPARE_FRACTION = 1.1  # learn so many more than wanted: some are in the base already, some are dead


def extend_model(
    base: bytes, texts: Texts, vocab_size: int, scripts: Sequence[str], coverage: Coverage
) -> bytes:
    """`base` with pieces of `scripts` learned from `texts`, and with chat markers, `vocab_size` in all.

    The result puts no space before a text, whatever the base does: `extended.encode(" " + text)` is what the
    base made of `text`. So a text comes back as it was, and a conversation's parts can be put together.

    Raises UserError when the base cannot be extended without loss, when it was made for these scripts, or
    when the texts do not fill the vocabulary.
    """
    pieces = read_pieces(base)
    _check_base(base, pieces, scripts)
    markers = _missing_markers(base, pieces)
    num_new = vocab_size - len(pieces) - len(markers)
    if num_new < 1:
        raise UserError(
            f"vocab_size = {vocab_size} leaves no room: the base has {len(pieces)} pieces, and chat markers "
            f"take {len(markers)}",
            hint=f"set [tokenizer] vocab_size to {len(pieces) + len(markers) + 1} or more",
        )
    words = _count_words(texts, pieces, scripts, coverage)
    candidates = _learn(words, num_new, {piece.text for piece in pieces})
    model = without_dummy_prefix(base)
    new = _first_alive(model, [*pieces, *markers], candidates, num_new)
    if len(new) < num_new:
        raise UserError(
            f"the texts give {len(new)} pieces of {', '.join(scripts)}, vocab_size asks for {num_new}",
            hint=f"set [tokenizer] vocab_size = {vocab_size - num_new + len(new)} or give more text",
        )
    return replace_pieces(model, [*pieces, *markers, *new])


def _check_base(base: bytes, pieces: Sequence[Piece], scripts: Sequence[str]) -> None:
    settings = read_settings(base)
    merged = Counter(s for p in pieces if p.kind == NORMAL and len(p.text) > 1 for s in scripts_of(p.text))
    found = [script for script in scripts if merged[script] > SPOKEN_FRACTION * len(pieces)]
    problems = {
        "it is no BPE model": not settings.is_bpe,
        "it has no byte fallback, so characters would be lost": not settings.byte_fallback,
        "it rewrites text (its normalisation is not the identity)": settings.has_character_map,
        "it removes spaces": settings.remove_extra_whitespaces,
        f"it is made for {', '.join(found)} itself, and its ids would change": bool(found),
        "no scripts are named": not scripts,
    }
    for problem, is_so in problems.items():
        if is_so:
            raise UserError(
                f"the model of [tokenizer] extend cannot be extended: {problem}",
                hint="choose another model or other extend_scripts, or learn a new vocabulary (extend = '')",
            )


def _missing_markers(base: bytes, pieces: Sequence[Piece]) -> list[Piece]:
    """Chat markers, and padding, as far as the base has none."""
    names = {piece.text for piece in pieces if piece.kind == CONTROL}
    processor = sentencepiece.SentencePieceProcessor(model_proto=base)
    pad = [] if processor.pad_id() >= 0 else [BASE_PAD_PIECE]
    return [Piece(name, 0.0, CONTROL) for name in (*pad, *SPECIAL_TOKENS) if name not in names]


def _count_words(
    texts: Texts, pieces: Sequence[Piece], scripts: Sequence[str], coverage: Coverage
) -> Counter[str]:
    """Runs of what new pieces may have: characters of `scripts` and their punctuation."""
    merged = {c for piece in pieces if piece.kind == NORMAL and len(piece.text) > 1 for c in piece.text}
    characters = count_characters(texts)
    of_scripts = {c: n for c, n in characters.items() if script_of(c) in scripts}
    rare = rare_characters(of_scripts, len(of_scripts), coverage)
    punctuation = {c for c in characters if c not in merged and _is_punctuation_of(c, scripts)}
    allowed = sorted((of_scripts.keys() - rare) | punctuation)
    if not of_scripts:
        return Counter()
    find = re.compile(f"[{''.join(map(re.escape, allowed))}]+").findall
    words: Counter[str] = Counter()
    for text in texts:
        for run in find(text):
            words.update(short_parts(run))
    return words


def _is_punctuation_of(character: str, scripts: Sequence[str]) -> bool:
    """East Asian scripts have their own commas and brackets, which the text of others does without."""
    return not EAST_ASIAN.isdisjoint(scripts) and bool(_EAST_ASIAN_PUNCTUATION.fullmatch(character))


def _learn(words: Counter[str], num_new: int, known: Collection[str]) -> list[str]:
    """New pieces, the first ones learned first, single characters (which need no merge) before all."""
    if not words:
        return []
    characters = {c for word in words for c in word}
    size = NUM_FIXED_PIECES + len(characters) + round(SPARE_FRACTION * num_new)
    model = train_words(words, size, Recipe())
    learned = [piece.text for piece in read_pieces(model) if piece.kind == NORMAL]
    new = [text for text in learned if text not in known and not characters.isdisjoint(text)]
    return sorted(new, key=lambda text: len(text) > 1)


def _first_alive(
    model: bytes, fixed: Sequence[Piece], candidates: Sequence[str], num_new: int
) -> list[Piece]:
    """The first `num_new` pieces that live on without the rest; fewer when there are no more."""
    while True:
        new = _alive(model, fixed, candidates)
        first = [piece.text for piece in new[:num_new]]
        alive = _alive(model, fixed, first)
        if len(alive) == len(first):
            return alive
        dead = set(first) - {piece.text for piece in alive}
        candidates = [piece.text for piece in new if piece.text not in dead]


def _alive(model: bytes, fixed: Sequence[Piece], candidates: Sequence[str]) -> list[Piece]:
    """The candidates that their own text is cut into; each round drops those that are not."""
    lowest = min(piece.score for piece in fixed if piece.kind == NORMAL)
    while True:
        new = list(_scored(candidates, lowest))
        extended = replace_pieces(model, [*fixed, *new])
        processor = sentencepiece.SentencePieceProcessor(model_proto=extended)
        cut = processor.encode(list(candidates), num_threads=1) if candidates else []
        alive = [t for i, (t, ids) in enumerate(zip(candidates, cut, strict=True)) if ids == [len(fixed) + i]]
        if len(alive) == len(candidates):
            return new
        candidates = alive


def _scored(candidates: Iterable[str], lowest: float) -> Iterator[Piece]:
    """Scores go on below the base's lowest, a whole step each: float32 tells them apart up to 2**24."""
    first = float(int(lowest) - 1)
    for place, text in enumerate(candidates):
        yield Piece(text, first - place)
