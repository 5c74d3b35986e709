"""What corpus_prep writes and can be told."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from data_contracts import (
    AGENT_SCENARIOS,
    BENCHMARK,
    CONVERSATIONS,
    DEDUP_INDEX,
    DOCUMENT_SCORES,
    DOCUMENTS,
    FUNNEL,
    PREFERENCES,
    REJECTS,
)
from stages.corpus_prep.inputs import external_inputs, outside_inputs
from stages.runtime.spec import StageConfig, StageSpec

PersonalData = Literal["email", "ip", "id_number", "card", "phone"]
MIN_RUN_WORDS = 10
LANGUAGE_CODE = re.compile("[a-z]{2,3}|code|other")


class CorpusPrepConfig(StageConfig):
    """Settings of the corpus preparation stage."""

    sources: tuple[str, ...] = ()
    """Own data: files, folders and quoted globs (.txt .md .jsonl .json .csv .tsv .parquet, also .gz).
    Empty: the documentation of this Python."""
    benchmark_sources: tuple[str, ...] = ()
    """Own multiple-choice questions, in the same file kinds; they join those made of held-out documents."""
    packages: str | tuple[str, ...] = "runtime"
    """What the harvest reads: "runtime" (what Glassworks itself installs), "all", or names of packages."""
    text_field: str = ""
    """Name of the field that holds the text, where it is none of the known names."""
    title_field: str = ""
    """Name of the field that holds the title, where it is none of the known names."""
    max_megabytes: float = Field(default=12.0, gt=0)
    """Most text to keep, shared out evenly among the sources. What is over is left out by hash of its id."""
    on_damage: Literal["stop", "skip"] = "stop"
    """What becomes of a file that cannot be read, or not to its end: it stops the stage, or is a reject."""
    filters: tuple[str, ...] = ("documentation",)
    """Rules for quality: "documentation" (wide), "web" (Gopher, C4, FineWeb; FineWeb2's for Chinese), or rule
    sets such as gopher_repetition. A source switches them by `PATH;filters=-NAME`."""
    thresholds: tuple[str, ...] = ()
    """Thresholds that you move: gopher_repetition.top_2_gram=0.25, or RULE=off."""
    near_duplicate_similarity: float = Field(default=0.8, ge=0, le=1)
    """Jaccard similarity of word 5-grams from which one of two documents goes, or one of two conversations or
    pairs of yours; 0 keeps near-duplicates."""
    repeated_paragraph_documents: int = Field(default=0, ge=0)
    """A paragraph that more than so many documents hold stays in the first of them only; 0: all stay."""
    repeated_line_documents: int = Field(default=0, ge=0)
    """The same for lines, such as menus and signatures."""
    repeated_min_characters: int = Field(default=30, ge=1)
    """Lines and paragraphs with fewer characters, white space not counted, stay in any case."""
    repeated_run_words: int = Field(default=0, ge=0)
    """A run of so many words that an earlier document holds is cut out; 0: none. Lee et al. 2021 take 50."""
    contamination_run_words: int = Field(default=13, ge=6)
    """Words in a row of a benchmark question that a document may not hold."""
    contamination_run_characters: int = Field(default=13, ge=6)
    """The same for Chinese and Japanese. For laws take 20: names of institutions have 13 characters."""
    earlier_corpora: tuple[str, ...] = ()
    """Folders of `dedup_index` parts of earlier builds: what they hold is dropped here."""
    languages: tuple[str, ...] = ()
    """Languages to keep, such as en zh ar code other; empty keeps all."""
    simplify_chinese: bool = False
    """Traditional characters of Chinese documents and records become simplified ones."""
    mask: tuple[PersonalData, ...] = ("email", "ip", "id_number", "card", "phone")
    """Personal data that gives way to [EMAIL], [IP], [ID-NUMBER], [CARD], [PHONE]."""
    min_language_score: float = Field(default=0.0, ge=0, le=1)
    """Documents whose language is less sure than this go."""
    url_lists: tuple[str, ...] = ()
    """Text files, an entry a line: bad.example, .bad.example (and all below it), /word of a path.
    Documents from there go."""
    word_lists: tuple[str, ...] = ()
    """Text files, a word or phrase a line: documents that hold more of them than max_listed_phrases go."""
    max_listed_phrases: int = Field(default=0, ge=0)
    """Listed words and phrases that a document may hold."""
    good_text: tuple[str, ...] = ()
    """Text such as you want, in the same file kinds as sources: documents get a perplexity by it."""
    bad_text: tuple[str, ...] = ()
    """Text such as you do not want: documents get a quality between 0 (like it) and 1 (like good_text)."""
    max_perplexity: float | None = Field(default=None, gt=1)
    """Documents whose characters good_text makes less likely than this go. English by English has 5 to 10,
    Chinese by Chinese of the same subject 20 to 70: a limit serves one language."""
    min_quality: float | None = Field(default=None, ge=0, le=1)
    """Documents of less quality go."""
    validation_fraction: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of the documents, conversations and pairs that are held out, by hash of their id."""
    max_conversations: int = Field(default=20_000, ge=0)
    """Most conversations to keep of the user's own, shared out evenly among their sources."""
    num_question_conversations: int = Field(default=4_000, ge=0)
    """Questions and answers about the documents; made only where the user gives no conversations."""
    num_tool_conversations: int = Field(default=6_000, ge=0)
    """Conversations that call the calculator, look-up and search tools; made in any case."""
    max_preferences: int = Field(default=8_000, ge=0)
    """Most preference pairs to keep of the user's own."""
    num_derived_preferences: int = Field(default=3_000, ge=0)
    """Pairs made from conversations; made only where the user gives none."""
    num_questions: int = Field(default=300, ge=4)
    """Benchmark questions made from held-out documents."""
    max_questions_per_source: int = Field(default=200, ge=1)
    """Most questions to score of each file of benchmark_sources; the corpus is kept free of all of them."""
    num_scenarios: int = Field(default=80, ge=5)
    """Agent scenarios with phrasings that training has seen, and as many with phrasings that it has not."""
    seed: int = 0
    """Seed of everything that is drawn."""
    num_workers: int = Field(default=0, ge=0)
    """Processes that work on shards; 0 for as many as there are processors and memory
    for (1 GiB each). The result is the same."""
    dask_scheduler: str = ""
    """Address such as tcp://10.0.0.5:8786: shards go to the workers of that Dask cluster instead."""

    @field_validator("languages")
    @classmethod
    def _languages_are_codes(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        for name in languages:
            if not LANGUAGE_CODE.fullmatch(name):
                raise ValueError(f"{name!r} is no code of a language such as en, zh, or code, or other")
        return languages

    @field_validator("repeated_run_words")
    @classmethod
    def _runs_are_long(cls, num_words: int) -> int:
        if 0 < num_words < MIN_RUN_WORDS:
            raise ValueError(f"shorter runs than {MIN_RUN_WORDS} words are just phrases; 0 cuts none")
        return num_words


SPEC = StageSpec(
    name="corpus_prep",
    version=2,
    config=CorpusPrepConfig,
    writes={
        "documents": DOCUMENTS,
        "conversations": CONVERSATIONS,
        "preferences": PREFERENCES,
        "benchmark": BENCHMARK,
        "scenarios": AGENT_SCENARIOS,
        "rejects": REJECTS,
        "funnel": FUNNEL,
        "dedup_index": DEDUP_INDEX,
        "document_scores": DOCUMENT_SCORES,
    },
    image="data",
    summary="text repair, quality filters, deduplication, decontamination; conversations, pairs, questions",
    external_inputs=external_inputs,
    outside=outside_inputs,
    # Sources count by the content of what they name, so that a data set may move. Who works changes nothing.
    not_in_key=frozenset(
        {
            *("sources", "benchmark_sources", "earlier_corpora", "num_workers", "dask_scheduler"),
            *("url_lists", "word_lists", "good_text", "bad_text"),
        }
    ),
)
