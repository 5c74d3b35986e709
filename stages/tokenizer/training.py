"""Learning the vocabulary: SentencePiece over words, and then, where words shall be copied, the space.

SentencePiece usually learns a word twice, "name" and " name", and cuts rare words differently in the two
cases. In the scheme "copyable" BPE learns words without their space. The last part of the vocabulary are
*space twins*: " name" for the pieces that stand most often behind a space, as the very last merges. So a word
is always cut the same way, and only its first piece may carry the space. Words also end before punctuation
(`words.py`).

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import sentencepiece

from stages.runtime.errors import UserError
from stages.tokenizer.alphabet import Coverage, count_characters, rare_characters
from stages.tokenizer.sentencepiece_file import NORMAL, Piece, read_pieces, replace_pieces
from stages.tokenizer.spec import MIN_VOCAB_SIZE
from stages.tokenizer.words import WordCounts, WordScheme, count_words, lines
from stages.whitebox.chat_format import SPECIAL_TOKENS
from stages.whitebox.tokenizer import BOS_PIECE, EOS_PIECE, PAD_PIECE, SPACE_MARK, UNK_PIECE, Tokenizer

USER_DEFINED_SYMBOLS = ("\n", "\n\n", "\n\n\n", "\n\n\n\n", "\t")
NUM_FIXED_PIECES = 4 + len(SPECIAL_TOKENS) + len(USER_DEFINED_SYMBOLS) + 256
LEAST_COVERAGE = 0.98
"""SentencePiece takes so many characters at least, whatever it is told."""
TWIN_FRACTION = 0.3
"""Share of the learned pieces that are space twins. 0.2 and 0.4 both need 0.7 % more tokens."""
NEVER_TWINS = "0123456789("
"""An expression begins with one of these: it must look the same behind a space and in a tool call."""

_SETTINGS: dict[str, object] = {
    "byte_fallback": True,
    "split_digits": True,
    "split_by_unicode_script": False,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
    "max_sentence_length": 16_384,
    "num_threads": 1,
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


@dataclass(frozen=True)
class Recipe:
    """What kind of vocabulary to learn."""

    coverage: Coverage = field(default_factory=Coverage)
    model_type: Literal["bpe", "unigram"] = "bpe"
    word_scheme: WordScheme = "copyable"
    user_defined_symbols: tuple[str, ...] = ()
    """Besides newlines and the tab: always one token, wherever they stand."""

    @property
    def symbols(self) -> list[str]:
        """All user-defined symbols, each once."""
        return list(dict.fromkeys((*USER_DEFINED_SYMBOLS, *self.user_defined_symbols)))

    @property
    def num_fixed_pieces(self) -> int:
        """Pieces that are not learned."""
        return 4 + len(SPECIAL_TOKENS) + len(self.symbols) + 256


class Texts(Protocol):
    """Texts that can be read more than once: a list, or a sample that reads its documents anew."""

    def __iter__(self) -> Iterator[str]:
        """The texts, the same ones each time."""
        ...


class CorpusTooSmall(ValueError):
    """The corpus fills only `largest` pieces."""

    def __init__(self, largest: int) -> None:
        super().__init__(f"the corpus fills only {largest} pieces")
        self.largest = largest


def train_sentencepiece(
    texts: Texts, vocab_size: int, character_coverage: float = 0.9995, recipe: Recipe | None = None
) -> bytes:
    """The model file of a vocabulary of exactly `vocab_size` pieces learned from `texts`, read twice.

    `recipe` brings its own coverage. Raises UserError, with the size that would work, when the texts cannot
    fill the vocabulary.
    """
    recipe = recipe or Recipe(Coverage(character_coverage))
    characters = count_characters(texts)
    learn = _copyable if recipe.word_scheme == "copyable" else _compact
    try:
        return learn(texts, characters, vocab_size, recipe)
    except CorpusTooSmall as error:
        largest = error.largest
    while largest >= MIN_VOCAB_SIZE:  # a smaller vocabulary has a smaller alphabet, too, and may fill less
        try:
            learn(texts, characters, largest, recipe)
            break
        except CorpusTooSmall as error:
            largest = min(error.largest, largest - 1)
    fits = f"set [tokenizer] vocab_size = {largest} or " if largest >= MIN_VOCAB_SIZE else ""
    raise UserError(
        f"the corpus is too small for vocab_size = {vocab_size}", hint=f"{fits}give corpus_prep more text"
    )


def _copyable(texts: Iterable[str], characters: Mapping[str, int], vocab_size: int, recipe: Recipe) -> bytes:
    rare = _rare(characters, vocab_size, recipe)
    counts = count_words(texts, rare)
    # A corpus without runs of spaces gives no reason for a lone space; without a piece it would be spelt with
    # the bytes of SPACE_MARK, and come back as that.
    counts.words.setdefault(" ", 1)
    model = train_words(counts.words, vocab_size, recipe)
    return add_space_twins(model, counts, vocab_size, recipe.num_fixed_pieces)


def _compact(texts: Iterable[str], characters: Mapping[str, int], vocab_size: int, recipe: Recipe) -> bytes:
    """Plain SentencePiece, but for the alphabet."""
    rare = _rare(characters, vocab_size, recipe)
    counted = Counter({c: n for c, n in characters.items() if c not in {*recipe.symbols, "\0"}})
    more = _needed_characters(recipe)
    counted.update(more)
    kept = {c: n for c, n in counted.items() if c not in rare}
    # SentencePiece takes required characters first, the frequent ones first, and stops as soon as it has the
    # coverage that it was told: so it is told what the last of them brings.
    coverage = (sum(kept.values()) - min(kept.values()) / 2) / counted.total()
    settings: dict[str, object] = {"required_chars": "".join(sorted(kept)).replace(" ", SPACE_MARK)}
    if coverage < LEAST_COVERAGE:  # it would take more characters than we want
        model = _train(_lines_and_more(texts, more, rare), vocab_size, recipe, {"character_coverage": 1.0})
    else:
        settings["character_coverage"] = coverage if rare else 1.0
        model = _train(_lines_and_more(texts, more), vocab_size, recipe, settings)
    if (found := len(read_pieces(model))) < vocab_size:
        raise CorpusTooSmall(found)
    return model


def _lines_and_more(
    texts: Iterable[str], more: Iterable[str], rare: frozenset[str] = frozenset()
) -> Iterator[str]:
    yield from lines(texts, rare)
    yield from sorted(more)


def _needed_characters(recipe: Recipe) -> frozenset[str]:
    """Characters that need a piece though the texts may not have them: the space, and in a unigram model
    those that its control tokens are written with. Hugging Face would find these names in a text otherwise,
    because a name costs it less than an unknown character."""
    names = "".join((*SPECIAL_TOKENS, UNK_PIECE, BOS_PIECE, EOS_PIECE, PAD_PIECE, "<0x>0123456789ABCDEF"))
    return frozenset(" " + names) if recipe.model_type == "unigram" else frozenset(" ")


def _rare(characters: Mapping[str, int], vocab_size: int, recipe: Recipe) -> frozenset[str]:
    room = (vocab_size - recipe.num_fixed_pieces) // 2
    return rare_characters(characters, room, recipe.coverage)


def train_words(words: Mapping[str, int], vocab_size: int, recipe: Recipe) -> bytes:
    """At most `vocab_size` pieces learned from counted words: fewer when the words give no more."""
    rows = [f"{word}\t{count}" for word, count in sorted(words.items())]
    settings: dict[str, object] = {"character_coverage": 1.0, "input_format": "tsv"}
    try:
        return _train(rows, vocab_size, recipe, settings)
    except CorpusTooSmall as error:
        return _train(rows, error.largest, recipe, settings)


def _train(rows: Iterable[str], vocab_size: int, recipe: Recipe, settings: Mapping[str, object]) -> bytes:
    """Raises CorpusTooSmall when SentencePiece says so."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(rows),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=recipe.model_type,
            user_defined_symbols=recipe.symbols,
            **_SETTINGS,
            **settings,
        )
    except RuntimeError as error:
        fewer = re.search(r"value <= (\d+)", str(error))
        if fewer is None or int(fewer[1]) >= vocab_size:
            raise UserError(
                f"SentencePiece cannot learn {vocab_size} pieces from this corpus: {error}",
                hint="check the documents with `glassworks show`, or change [tokenizer] vocab_size",
            ) from error
        raise CorpusTooSmall(int(fewer[1])) from error
    return model.getvalue()


def add_space_twins(
    model: bytes, counts: WordCounts, vocab_size: int, num_fixed_pieces: int = NUM_FIXED_PIECES
) -> bytes:
    """`model` with its last merges given up for space twins, so that it has `vocab_size` pieces.

    Raises CorpusTooSmall when there are not enough merges and twins together.
    """
    pieces = read_pieces(model)
    num_twins = max(round(TWIN_FRACTION * (vocab_size - num_fixed_pieces)), vocab_size - len(pieces))
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
    firsts: Counter[int] = Counter()
    for word, ids in zip(words, tokenizer.encode_batch(words), strict=True):
        firsts[ids[0]] += counts.behind_space[word]
    found = {tokenizer.piece(first): count for first, count in firsts.items() if not tokenizer.is_byte(first)}
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return [text for text, _ in ranked if text[0] not in NEVER_TWINS]


def _ranked(pieces: Sequence[Piece]) -> list[Piece]:
    """Learned pieces scored by their place, 0, -1, -2 ...: the earlier one is merged first."""
    first = next(i for i, piece in enumerate(pieces) if piece.kind == NORMAL)
    return [
        Piece(piece.text, float(first - i) if piece.kind == NORMAL else 0.0, piece.kind)
        for i, piece in enumerate(pieces)
    ]
