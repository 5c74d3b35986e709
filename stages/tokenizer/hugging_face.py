"""The same tokenizer for Hugging Face: `tokenizer.json` written by hand, with SentencePiece's ids.

SentencePiece merges, again and again, the two neighbours whose joint piece has the best score. Hugging Face's
BPE wants a ranked list of pairs instead; every split of a piece into two pieces is such a pair, ranked by the
piece.

Unlike the usual converters we write plain spaces into the vocabulary where SentencePiece has U+2581: no
normaliser is needed, and a U+2581 in a text survives. Splits of one piece get different ranks here while
SentencePiece ranks them alike and takes the leftmost; a fuzz test over periodic strings, the only ones where
that could matter, finds no case.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stages.tokenizer.training import USER_DEFINED_SYMBOLS
from stages.whitebox.chat_format import CHAT_TEMPLATE, CHAT_TOKENS
from stages.whitebox.tokenizer import BOS_PIECE, EOS_PIECE, PAD_PIECE, UNK_PIECE, Tokenizer


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer.json`."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(tokenizer, i) for i in _added_ids(tokenizer)],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": _begin_with_bos(tokenizer.bos_id),
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNK_PIECE,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)},
            "merges": merges(tokenizer),
        },
    }


def _added_ids(tokenizer: Tokenizer) -> list[int]:
    ids = range(tokenizer.vocab_size)
    return [i for i in ids if tokenizer.is_special(i) or tokenizer.piece(i) in USER_DEFINED_SYMBOLS]


def _added_token(tokenizer: Tokenizer, token_id: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = tokenizer.is_special(token_id)
    return {"id": token_id, "content": tokenizer.piece(token_id), **flags, "special": special}


def _begin_with_bos(bos_id: int) -> dict[str, Any]:
    bos = {"SpecialToken": {"id": BOS_PIECE, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, second],
        "special_tokens": {BOS_PIECE: {"id": BOS_PIECE, "ids": [bos_id], "tokens": [BOS_PIECE]}},
    }


def merges(tokenizer: Tokenizer) -> list[list[str]]:
    """Every way to put a piece together from two pieces, best piece first."""
    pieces = {tokenizer.piece(i): tokenizer.score(i) for i in _mergeable(tokenizer)}
    long_pieces = sorted((p for p in pieces if len(p) > 1), key=lambda p: -pieces[p])
    return [
        [piece[:at], piece[at:]]
        for piece in long_pieces
        for at in range(1, len(piece))
        if piece[:at] in pieces and piece[at:] in pieces
    ]


def _mergeable(tokenizer: Tokenizer) -> Iterator[int]:
    for i in range(tokenizer.vocab_size):
        if not (
            tokenizer.is_special(i) or tokenizer.is_byte(i) or tokenizer.piece(i) in USER_DEFINED_SYMBOLS
        ):
            yield i


def tokenizer_config() -> dict[str, Any]:
    """The content of `tokenizer_config.json`: roles of the special tokens, and the chat template."""
    return {
        **special_tokens_map(),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
        "chat_template": CHAT_TEMPLATE,
    }


def special_tokens_map() -> dict[str, Any]:
    """The content of `special_tokens_map.json`."""
    return {
        "bos_token": BOS_PIECE,
        "eos_token": EOS_PIECE,
        "unk_token": UNK_PIECE,
        "pad_token": PAD_PIECE,
        "additional_special_tokens": list(CHAT_TOKENS),
    }
