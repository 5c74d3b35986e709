"""The same tokenizer for Hugging Face: `tokenizer.json` written by hand, with SentencePiece's ids.

SentencePiece merges, again and again, the two neighbours whose joint piece has the best score. Hugging Face's
BPE wants a ranked list of pairs instead; every split of a piece into two pieces is such a pair, ranked by the
piece. A unigram model is a list of pieces and scores in both.

Unlike the usual converters we write plain spaces into the vocabulary where SentencePiece has U+2581: no
normaliser is needed, and a U+2581 in a text survives. Splits of one piece get different ranks here while
SentencePiece ranks them alike and takes the leftmost; a fuzz test over periodic strings, the only ones where
that could matter, finds no case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stages.tokenizer.sentencepiece_file import read_pieces, read_settings
from stages.whitebox.chat_format import CHAT_TEMPLATE, CHAT_TOKENS
from stages.whitebox.tokenizer import Tokenizer

USER_DEFINED = 4  # the kind of a piece in a model file
NEVER_CHOSEN = -1e6
"""Score of what is no text. Hugging Face looks for "<0x41>" and "<|pad|>" in a text like for any piece."""


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer.json`."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(tokenizer, i) for i in _added_ids(tokenizer)],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": begin_with_bos(tokenizer.piece(tokenizer.bos_id), tokenizer.bos_id),
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": _bpe(tokenizer) if read_settings(tokenizer.model_proto).is_bpe else _unigram(tokenizer),
    }


def _bpe(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": tokenizer.piece(tokenizer.unk_id),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)},
        "merges": merges(tokenizer),
    }


def _unigram(tokenizer: Tokenizer) -> dict[str, Any]:
    learned = frozenset(_mergeable(tokenizer))
    scores = [tokenizer.score(i) if i in learned else NEVER_CHOSEN for i in range(tokenizer.vocab_size)]
    return {
        "type": "Unigram",
        "unk_id": tokenizer.unk_id,
        "byte_fallback": True,
        "vocab": [[tokenizer.piece(i), score] for i, score in enumerate(scores)],
    }


def _user_defined(tokenizer: Tokenizer) -> frozenset[int]:
    pieces = read_pieces(tokenizer.model_proto)
    return frozenset(i for i, piece in enumerate(pieces) if piece.kind == USER_DEFINED)


def _added_ids(tokenizer: Tokenizer) -> list[int]:
    fixed = _user_defined(tokenizer)
    return [i for i in range(tokenizer.vocab_size) if tokenizer.is_special(i) or i in fixed]


def _added_token(tokenizer: Tokenizer, token_id: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = tokenizer.is_special(token_id)
    return {"id": token_id, "content": tokenizer.piece(token_id), **flags, "special": special}


def begin_with_bos(name: str, token_id: int) -> dict[str, Any]:
    """The post-processor that puts BOS before a text."""
    bos = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": part, "type_id": 0}} for part in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, second],
        "special_tokens": {name: {"id": name, "ids": [token_id], "tokens": [name]}},
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
    fixed = _user_defined(tokenizer)
    for i in range(tokenizer.vocab_size):
        if not (tokenizer.is_special(i) or tokenizer.is_byte(i) or i in fixed):
            yield i


def roles(tokenizer: Tokenizer) -> dict[str, str]:
    """Role -> name of the special token of a SentencePiece model."""
    ids = {"unk": tokenizer.unk_id, "bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    return {f"{role}_token": tokenizer.piece(i) for role, i in ids.items()}


def tokenizer_config(roles: Mapping[str, str]) -> dict[str, Any]:
    """The content of `tokenizer_config.json`: roles of the special tokens, and the chat template."""
    return {
        **special_tokens_map(roles),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
        "chat_template": CHAT_TEMPLATE,
    }


def special_tokens_map(roles: Mapping[str, str]) -> dict[str, Any]:
    """The content of `special_tokens_map.json`."""
    order = [role for role in ("bos_token", "eos_token", "unk_token", "pad_token") if role in roles]
    return {**{role: roles[role] for role in order}, "additional_special_tokens": list(CHAT_TOKENS)}
