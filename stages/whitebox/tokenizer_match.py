"""Whether models, tokenizers and chat templates are of one family: ids of another mean other words.

Every error says what was found, what was expected and what to do.
"""

from __future__ import annotations

from pathlib import Path

from stages.whitebox.chat_format import CHAT_TOKENS
from stages.whitebox.chat_template import why_another_template
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import IMPORTED_FILE, MODEL_FILE, Tokenizer

REBUILD = "build both again: glassworks rerun tokenizer --with-downstream"


def check_chat(tokenizer: Tokenizer, folder: Path) -> None:
    """Whether this tokenizer has the markers of a chat and our template.

    Raises:
        ValueError: it is a base model's, or has the template of another model.
    """
    missing = [name for name in CHAT_TOKENS if not _has(tokenizer, name)]
    if missing:
        raise ValueError(
            f"the tokenizer in {folder} lacks {', '.join(missing)}, which mark turns and tool calls: it is "
            "that of a base model; the tokenizer stage adds them to an imported one: "
            "glassworks rerun tokenizer --with-downstream"
        )
    if problem := why_another_template(folder):
        raise ValueError(
            f"the chat template in {folder} is that of another model: {problem}; what is trained "
            "would not be what is served; glassworks rerun tokenizer --with-downstream writes ours"
        )


def check_same_tokens(tokenizer: Tokenizer, model: CausalLM, folder: Path, what: str) -> None:
    """Whether `model`, from `folder`, was trained on this tokenizer's ids: same number, and same pieces.

    `what`: the model's name in messages. Where no tokenizer lies beside the weights only sizes are compared.

    Raises:
        ValueError: it was not.
    """
    if model.config.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"{what} has a vocabulary of {model.config.vocab_size}, the tokenizer of {tokenizer.vocab_size}; "
            f"{REBUILD}"
        )
    if not any((folder / name).is_file() for name in (MODEL_FILE, IMPORTED_FILE)):
        return
    theirs = Tokenizer.from_folder(folder)
    if theirs.sha256 == tokenizer.sha256:
        return
    place = first_difference(theirs, tokenizer)
    pieces = "other merges" if place is None else (
        f"token {place} is {theirs.piece(place)!r} there and {tokenizer.piece(place)!r} here"
    )  # fmt: skip
    raise ValueError(
        f"{what} in {folder} was trained with another tokenizer of the same size ({theirs.sha256[:10]}, "
        f"ours is {tokenizer.sha256[:10]}): {pieces}; {REBUILD}"
    )


def _has(tokenizer: Tokenizer, name: str) -> bool:
    try:
        tokenizer.special_id(name)
    except ValueError:
        return False
    return True


def first_difference(base: Tokenizer, other: Tokenizer) -> int | None:
    """The first token of `base` that `other` lacks or spells otherwise; None where it has them all."""
    for token in range(base.vocab_size):
        if token >= other.vocab_size or base.piece(token) != other.piece(token):
            return token
    return None
