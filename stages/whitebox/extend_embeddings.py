"""Rows of an embedding for pieces that a vocabulary has grown by.

A new piece begins as the mean of what the old vocabulary spells it with, so that the model reads roughly what
it read before (Yao et al. 2021, arXiv:2106.13474; Chinese-LLaMA leaves them random, Cui et al. 2023,
arXiv:2304.08177). A control token has no spelling; it begins as the mean of all rows, around which
transformers' `resize_token_embeddings` draws its new rows (Hewitt 2021, "Initializing new word embeddings for
pretrained language models").
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.whitebox.tokenizer import Tokenizer


def extend_embeddings(weight_VxD: Tensor, base: Tokenizer, extended: Tokenizer) -> Tensor:
    """`weight_VxD` with a row for every piece that `extended` has and `base` has not, [V', D].

    The first V rows are `weight_VxD`, bit for bit. Means are taken in float32. Works for the input embedding
    and for the output head. Raises ValueError when the vocabularies do not fit one another.
    """
    if weight_VxD.shape[0] != base.vocab_size:
        raise ValueError(f"{weight_VxD.shape[0]} rows, but the base has {base.vocab_size} pieces")
    if any(base.piece(i) != extended.piece(i) for i in range(min(base.vocab_size, extended.vocab_size))):
        raise ValueError("the extended vocabulary does not begin with the base's pieces")
    if extended.vocab_size < base.vocab_size:
        raise ValueError(f"{extended.vocab_size} pieces are fewer than the base's {base.vocab_size}")
    full_VxD = weight_VxD.float()
    rows = [weight_VxD]
    mean_D = full_VxD.mean(dim=0)
    for token in range(base.vocab_size, extended.vocab_size):
        ids = [] if extended.is_special(token) else base.encode(extended.token_bytes(token).decode())
        row_D = full_VxD[torch.tensor(ids)].mean(dim=0) if ids else mean_D
        rows.append(row_D.to(weight_VxD.dtype)[None])
    return torch.cat(rows)
