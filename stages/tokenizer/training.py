"""Learning the vocabulary: SentencePiece's BPE over words, and then the space.

SentencePiece usually learns a word twice, "name" and " name", and cuts rare words differently in the two
cases. Here BPE learns words without their space. The last part of the vocabulary are *space twins*: " name"
for the pieces that stand most often behind a space, as the very last merges. So a word is always cut the same
way, and only its first piece may carry the space. Words also end before punctuation (`words.py`).

What it buys: in tool conversations the argument of a call has the same tokens as in the question, but for the
space of the first, in 99 to 100 % of the cases; with plain SentencePiece in 50 % (look-up), 74 %
(calculator) and 24 % (search). What it costs: 5 % more tokens on English documentation, 3 % on
conversations (4,096 pieces).

Identity normalisation without a dummy prefix makes the tokenizer lossless; newlines and the tab are symbols
of their own, because SentencePiece learns nothing across them; digits stay single, as arithmetic needs.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import sentencepiece

from stages.runtime.errors import UserError
from stages.tokenizer.sentencepiece_file import NORMAL, Piece, read_pieces, replace_pieces
from stages.tokenizer.spec import MIN_VOCAB_SIZE
from stages.tokenizer.words import WordCounts, count_words
from stages.whitebox.chat_format import SPECIAL_TOKENS
from stages.whitebox.tokenizer import BOS_PIECE, EOS_PIECE, PAD_PIECE, SPACE_MARK, UNK_PIECE, Tokenizer

USER_DEFINED_SYMBOLS = ("\n", "\n\n", "\n\n\n", "\n\n\n\n", "\t")
NUM_FIXED_PIECES = 4 + len(SPECIAL_TOKENS) + len(USER_DEFINED_SYMBOLS) + 256
TWIN_FRACTION = 0.3
"""Share of the learned pieces that are space twins. 0.2 and 0.4 both need 0.7 % more tokens."""
NEVER_TWINS = "0123456789("
"""An expression begins with one of these: it must look the same behind a space and in a tool call."""

_SETTINGS: dict[str, object] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    "split_by_unicode_script": False,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
    "character_coverage": 1.0,  # rare characters are taken out before: see rare_characters
    "input_format": "tsv",
    "max_sentence_length": 16_384,
    "num_threads": 1,
    "user_defined_symbols": list(USER_DEFINED_SYMBOLS),
    "control_symbols": list(SPECIAL_TOKENS),
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": 3,
    "unk_piece": UNK_PIECE,
    "bos_piece": BOS_PIECE,
    "eos_piece": EOS_PIECE,
    "pad_piece": PAD_PIECE,
    "minloglevel": 2,
}


class CorpusTooSmall(ValueError):
    """The corpus fills only `largest` pieces."""

    def __init__(self, largest: int) -> None:
        super().__init__(f"the corpus fills only {largest} pieces")
        self.largest = largest


def train_sentencepiece(texts: Sequence[str], vocab_size: int, character_coverage: float) -> bytes:
    """The model file of a BPE vocabulary of exactly `vocab_size` pieces learned from `texts`.

    Raises UserError, with the size that would work, when the texts cannot fill the vocabulary.
    """
    try:
        return _train(texts, vocab_size, character_coverage)
    except CorpusTooSmall as error:
        largest = _largest_that_works(texts, error.largest, character_coverage)
    fits = f"set [tokenizer] vocab_size = {largest} or " if largest >= MIN_VOCAB_SIZE else ""
    raise UserError(
        f"the corpus is too small for vocab_size = {vocab_size}", hint=f"{fits}give corpus_prep more text"
    )


def _largest_that_works(texts: Sequence[str], largest: int, character_coverage: float) -> int:
    """At most `largest`: a smaller vocabulary has a smaller alphabet, too, and may fill less."""
    while largest >= MIN_VOCAB_SIZE:
        try:
            _train(texts, largest, character_coverage)
            break
        except CorpusTooSmall as error:
            largest = min(error.largest, largest - 1)
    return largest


def _train(texts: Sequence[str], vocab_size: int, character_coverage: float) -> bytes:
    rare = rare_characters(texts, (vocab_size - NUM_FIXED_PIECES) // 2, character_coverage)
    counts = count_words(texts, rare)
    # A corpus without runs of spaces gives no reason for a lone space; without a piece it would be spelt with
    # the bytes of SPACE_MARK, and come back as that.
    counts.words.setdefault(" ", 1)
    return add_space_twins(_train_words(counts.words, vocab_size), counts, vocab_size)


def _train_words(words: Counter[str], vocab_size: int) -> bytes:
    """BPE of at most `vocab_size` pieces: fewer when the words give no more."""
    lines = [f"{word}\t{count}" for word, count in sorted(words.items())]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=vocab_size, **_SETTINGS
        )
    except RuntimeError as error:
        fewer = re.search(r"value <= (\d+)", str(error))
        if fewer is None or int(fewer[1]) >= vocab_size:
            raise UserError(
                f"SentencePiece cannot learn {vocab_size} pieces from this corpus: {error}",
                hint="check the documents with `glassworks show`, or change [tokenizer] vocab_size",
            ) from error
        return _train_words(words, int(fewer[1]))
    return model.getvalue()


def add_space_twins(model: bytes, counts: WordCounts, vocab_size: int) -> bytes:
    """`model` with its last merges given up for space twins, so that it has `vocab_size` pieces.

    Raises CorpusTooSmall when there are not enough merges and twins together.
    """
    pieces = read_pieces(model)
    num_twins = max(round(TWIN_FRACTION * (vocab_size - NUM_FIXED_PIECES)), vocab_size - len(pieces))
    while True:
        kept = _drop_last_merges(pieces, vocab_size - num_twins)
        candidates = _twin_candidates(replace_pieces(model, kept), counts)
        if len(candidates) >= num_twins:
            break
        num_twins = len(candidates)  # texts without spaces have few: they get merges instead
        if vocab_size - num_twins > len(pieces):
            raise CorpusTooSmall(len(pieces) + num_twins)
    twins = [Piece(SPACE_MARK + text, 0.0) for text in candidates[:num_twins]]
    return replace_pieces(model, _ranked([*kept, *twins]))


def _drop_last_merges(pieces: Sequence[Piece], count: int) -> list[Piece]:
    """The first `count` pieces when the latest merges go first; single characters and fixed pieces stay."""
    merges = [i for i, piece in enumerate(pieces) if piece.kind == NORMAL and len(piece.text) > 1]
    dropped = set(merges[len(merges) - max(0, len(pieces) - count) :])
    return [piece for i, piece in enumerate(pieces) if i not in dropped]


def _twin_candidates(model: bytes, counts: WordCounts) -> list[str]:
    """Pieces that stand first in a word behind a space, the most frequent first."""
    tokenizer = Tokenizer(model)
    words = sorted(counts.behind_space)
    firsts: Counter[str] = Counter()
    for word, ids in zip(words, tokenizer.encode_batch(words), strict=True):
        if not (tokenizer.is_byte(ids[0]) or tokenizer.piece(ids[0])[0] in NEVER_TWINS):
            firsts[tokenizer.piece(ids[0])] += counts.behind_space[word]
    return [text for text, _ in sorted(firsts.items(), key=lambda item: (-item[1], item[0]))]


def _ranked(pieces: Sequence[Piece]) -> list[Piece]:
    """Learned pieces scored by their place, 0, -1, -2 ...: the earlier one is merged first."""
    first = next(i for i, piece in enumerate(pieces) if piece.kind == NORMAL)
    return [
        Piece(piece.text, float(first - i) if piece.kind == NORMAL else 0.0, piece.kind)
        for i, piece in enumerate(pieces)
    ]


def rare_characters(texts: Iterable[str], max_characters: int, coverage: float) -> frozenset[str]:
    """Characters without a piece: the rarest, beyond `coverage` of the text or `max_characters` pieces.

    SentencePiece refuses a coverage below 0.98, which a small vocabulary over Chinese text needs; so we
    choose the alphabet. ASCII is always in it.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    total, covered, kept = sum(counts.values()), 0, 0
    rare = set()
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if character.isascii() or (kept < max_characters and covered < coverage * total):
            covered, kept = covered + count, kept + 1
        else:
            rare.add(character)
    return frozenset(rare)
