"""What others say their tokenizers need: bytes of text per token, and where that is written.

On their text, not on the user's: a few per cent either way mean nothing. Only figures that somebody states
are here: for GPT-4o and Qwen none in bytes per token was found. The Tokenizer Arena took 10,000 lines of
CC-100 in each language and prints GiB per billion tokens, or TiB per trillion; here that is bytes per token.
"""

from __future__ import annotations

from typing import NamedTuple

ARENA = "CC-100, 10,000 lines: README of the Tokenizer Arena (xu-song)"
NANOCHAT = "FineWeb-Edu, 4.2 MB: training reports of nanochat"


class Published(NamedTuple):
    """One stated figure."""

    tokenizer: str
    vocab_size: int
    language: str
    bytes_per_token: float
    source: str


PUBLISHED = (
    Published("GPT-2", 50_257, "en", 4.67, NANOCHAT),
    Published("GPT-4", 100_277, "en", 4.81, NANOCHAT),
    Published("GPT-3.5 (code-davinci-002)", 50_281, "en", 4.35, ARENA),
    Published("GPT-3.5 (code-davinci-002)", 50_281, "zh", 1.41, ARENA),
    Published("Llama 1 (amber)", 32_000, "en", 3.82, ARENA),
    Published("Llama 1 (amber)", 32_000, "zh", 1.98, ARENA),
    Published("BLOOM", 250_680, "en", 4.37, ARENA),
    Published("BLOOM", 250_680, "zh", 4.60, ARENA),
    Published("Baichuan 2", 125_696, "en", 4.18, ARENA),
    Published("Baichuan 2", 125_696, "zh", 4.86, ARENA),
    Published("ChatGLM3", 64_798, "en", 3.89, ARENA),
    Published("ChatGLM3", 64_798, "zh", 4.51, ARENA),
    Published("Chinese-LLaMA", 49_953, "en", 3.85, ARENA),
    Published("Chinese-LLaMA", 49_953, "zh", 4.22, ARENA),
    Published("Llama 3", 128_000, "zh", 3.52, ARENA),
)
