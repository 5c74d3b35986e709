"""What the tokenizer stage reads, writes and can be told."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from data_contracts import CONVERSATIONS, DOCUMENTS, TOKEN_SHARDS, TOKENIZER_BUNDLE
from stages.runtime.errors import UserError
from stages.runtime.spec import Outside, Read, StageConfig, StageSpec

MIN_VOCAB_SIZE = 400  # 279 fixed ids, ASCII, and a few merges
FIXED_MEMORY_MEGABYTES = 200
MEMORY_PER_SAMPLE_MEGABYTE = 17
"""What SentencePiece needs: measured with 20 to 100 MB of English and Chinese."""
IMPORTED_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class TokenizerConfig(StageConfig):
    """Settings of the tokenizer stage."""

    vocab_size: int = Field(default=4096, ge=MIN_VOCAB_SIZE, le=1_000_000)
    """Number of token ids, 279 of them fixed. More of them shorten texts and widen the model."""
    sample_megabytes: float = Field(default=20.0, gt=0)
    """Text that SentencePiece learns from. It takes about 17 MB of memory per MB of text, and some 0.3 s."""
    memory_megabytes: float = Field(default=0.0, ge=0)
    """Memory that learning may take; the sample becomes smaller where it would take more. 0: no limit."""
    conversation_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Share of the sample that is conversations, so that chats and tool calls get pieces too."""
    max_document_bytes: int = Field(default=20_000, ge=100)
    """The sample takes at most so many bytes of one document: a long book must not outweigh many pages."""
    character_coverage: float = Field(default=0.9995, gt=0.9, le=1)
    """Share of the sample's characters that get a piece of their own; the rest are spelled in byte tokens."""
    coverage_of_script: dict[str, float] = Field(default_factory=dict)
    """The same for single scripts, such as {Han = 0.999}; character_coverage holds for the rest."""
    model_type: Literal["bpe", "unigram"] = "bpe"
    """Unigram takes 45 times as long to learn, and goes with word_scheme = "compact" only."""
    word_scheme: Literal["copyable", "compact"] = "copyable"
    """copyable: a word is cut the same way wherever it stands. compact: 4 to 6 % fewer tokens at 32,000."""
    user_defined_symbols: tuple[str, ...] = ()
    """Strings that are always one token, also where a user types them. Newlines and the tab always are."""
    extend: str = ""
    """A SentencePiece model file (BPE) to extend by pieces for other scripts; vocab_size counts all."""
    extend_scripts: tuple[str, ...] = ("Han",)
    """Scripts that the new pieces are made of, by Unicode name: Han, Arabic, Hiragana, Hangul ..."""
    import_from: str = ""
    """A Hugging Face tokenizer.json, or its folder, to use as it is: nothing is learned then."""
    shard_tokens: int = Field(default=2**28, ge=1)
    """A file of tokens holds at most about so many; 2**28 are 512 MiB at two bytes each."""
    shuffle_seed: int = Field(default=0, ge=0)
    """Another seed writes the documents in another order."""
    num_threads: int = Field(default=0, ge=0)
    """Threads that encode documents; 0 for one per processor. The tokens do not depend on it."""

    @field_validator("user_defined_symbols")
    @classmethod
    def _symbols_are_plain(cls, symbols: tuple[str, ...]) -> tuple[str, ...]:
        for symbol in symbols:
            if not symbol or " " in symbol or "\u2581" in symbol or "\0" in symbol:
                raise ValueError(
                    f"{symbol!r} cannot be one token: it is empty, or has a space, U+2581 or NUL"
                )
        return symbols

    @model_validator(mode="after")
    def _settings_go_together(self) -> TokenizerConfig:
        if self.model_type == "unigram" and self.word_scheme == "copyable" and not self.import_from:
            raise ValueError('model_type = "unigram" needs word_scheme = "compact"')
        if self.extend and self.import_from:
            raise ValueError("extend and import_from exclude each other")
        if 0 < self.memory_megabytes <= FIXED_MEMORY_MEGABYTES + MEMORY_PER_SAMPLE_MEGABYTE:
            raise ValueError(
                f"memory_megabytes must be over {FIXED_MEMORY_MEGABYTES + MEMORY_PER_SAMPLE_MEGABYTE}, or 0"
            )
        return self

    @property
    def sample_bytes(self) -> int:
        """Bytes of text to learn from: what is asked for, or what memory allows."""
        megabytes = self.sample_megabytes
        if self.memory_megabytes:
            spare = self.memory_megabytes - FIXED_MEMORY_MEGABYTES
            megabytes = min(megabytes, spare / MEMORY_PER_SAMPLE_MEGABYTE)
        return int(megabytes * 1e6)


def external_files(config: TokenizerConfig) -> dict[str, Path]:
    """Name -> file outside the store that the stage reads. Raises UserError for one that is not there."""
    if config.extend:
        return {"extend": _existing("extend", Path(config.extend).expanduser())}
    if not config.import_from:
        return {}
    place = Path(config.import_from).expanduser()
    place = place / IMPORTED_FILES[0] if place.is_dir() else place
    beside = [place.parent / name for name in IMPORTED_FILES[1:]]
    files = {IMPORTED_FILES[0]: _existing("import_from", place)}
    return files | {path.name: path for path in beside if path.is_file()}


def _existing(setting: str, path: Path) -> Path:
    if not path.is_file():
        raise UserError(
            f"[tokenizer] {setting}: there is no file {path}",
            hint=f"set [tokenizer] {setting} to the path of an existing file",
        )
    return path


def _external_digests(config: TokenizerConfig) -> dict[str, str]:
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in external_files(config).items()
    }


def _outside(config: TokenizerConfig) -> Outside:
    return Outside(same_place=tuple(external_files(config).values()))


SPEC = StageSpec(
    name="tokenizer",
    version=2,
    config=TokenizerConfig,
    image="data",
    reads={
        "documents": Read("corpus_prep", "documents", DOCUMENTS),
        "conversations": Read("corpus_prep", "conversations", CONVERSATIONS),
    },
    writes={"tokenizer": TOKENIZER_BUNDLE, "tokens": TOKEN_SHARDS},
    external_inputs=_external_digests,
    outside=_outside,
    not_in_key=frozenset({"extend", "import_from"}),
    summary="SentencePiece BPE with byte fallback, the same ids in Hugging Face's format, token shards",
)
