"""Training SentencePiece so that it gives the same ids everywhere and loses nothing.

The settings were measured on 115 MB of English and Chinese: identity normalisation without a dummy prefix is
lossless, newlines as symbols of their own save 2 % of the tokens, pieces that mix scripts another 14 %
(numbers excepted: digits stay single, which arithmetic needs). num_threads=1 makes the model file
reproducible.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece

from stages.runtime.errors import UserError
from stages.tokenizer.spec import MIN_VOCAB_SIZE
from stages.whitebox.chat_format import SPECIAL_TOKENS
from stages.whitebox.tokenizer import BOS_PIECE, EOS_PIECE, PAD_PIECE, UNK_PIECE

USER_DEFINED_SYMBOLS = ("\n", "\n\n", "\n\n\n", "\n\n\n\n", "\t")
NUM_FIXED_PIECES = 4 + len(SPECIAL_TOKENS) + len(USER_DEFINED_SYMBOLS) + 256
MAX_LINE_CHARACTERS = 4000  # four bytes each at most: below max_sentence_length, over which lines are dropped
MAX_SENTENCE_BYTES = 16_384

_BREAKS = re.compile(r"[\n\t]+")


def train_sentencepiece(texts: Sequence[str], vocab_size: int, character_coverage: float) -> bytes:
    """The model file of a BPE vocabulary of exactly `vocab_size` pieces learned from `texts`.

    Raises UserError, with the size that would work, when the texts cannot fill the vocabulary.
    """
    try:
        return _train(texts, vocab_size, character_coverage)
    except RuntimeError as error:
        largest = _too_big(error)
        if largest is None:
            raise UserError(
                f"SentencePiece cannot learn {vocab_size} pieces from this corpus: {error}",
                hint="check the documents with `glassworks show`, or change [tokenizer] vocab_size",
            ) from error
    raise _corpus_too_small(texts, vocab_size, largest, character_coverage)


def _train(texts: Sequence[str], vocab_size: int, character_coverage: float) -> bytes:
    rare = rare_characters(texts, (vocab_size - NUM_FIXED_PIECES) // 2, character_coverage)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=training_lines(texts, rare),
        model_writer=model,
        vocab_size=vocab_size,
        **_SETTINGS,
    )
    return model.getvalue()


def _too_big(error: RuntimeError) -> int | None:
    """How many pieces there would have been, if that is what SentencePiece complains about."""
    limit = re.search(r"value <= (\d+)", str(error))
    return int(limit[1]) if limit else None


def _corpus_too_small(
    texts: Sequence[str], vocab_size: int, largest: int, character_coverage: float
) -> UserError:
    """Tries the size that SentencePiece names: a smaller one has a smaller alphabet and may fill less."""
    while largest >= MIN_VOCAB_SIZE:
        try:
            _train(texts, largest, character_coverage)
            break
        except RuntimeError as error:
            largest = min(_too_big(error) or 0, largest - 1)
    fits = f"set [tokenizer] vocab_size = {largest} or " if largest >= MIN_VOCAB_SIZE else ""
    return UserError(
        f"the corpus is too small for vocab_size = {vocab_size}", hint=f"{fits}give corpus_prep more text"
    )


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
    "max_sentence_length": MAX_SENTENCE_BYTES,
    "num_threads": 1,
    "shuffle_input_sentence": False,
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


def rare_characters(texts: Iterable[str], max_characters: int, coverage: float) -> frozenset[str]:
    """Characters that get no piece: the rarest, beyond `coverage` of the text or `max_characters` pieces.

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


def training_lines(texts: Iterable[str], rare: frozenset[str]) -> Iterator[str]:
    """Lines for SentencePiece, without rare characters, newlines or tabs: nothing is learned across those."""
    table = {ord(character): "\n" for character in rare}
    for text in texts:
        for line in _BREAKS.split(text.translate(table) if table else text):
            for start in range(0, len(line), MAX_LINE_CHARACTERS):
                yield line[start : start + MAX_LINE_CHARACTERS]
