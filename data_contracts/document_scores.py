"""What every document was judged by, kept or not: so that other thresholds can be tried without its text."""

from __future__ import annotations

import pyarrow as pa

from data_contracts.contract import Contract, TableRule

#: The step of the funnel that a document did not pass, or `kept`.
VERDICTS = ("kept", "quality", "deduplicated", "size_limit", "decontaminated")

#: Null where a corpus was made without them. left_*: of what C4's line edits left, where they were asked for.
#: pii_*: what was masked of each kind. listed_*: how many entries of the user's lists, and the first of them.
#: perplexity: by the user's good text. quality: between 0 (like the bad text) and 1.
OPTIONAL = {
    "left_characters": pa.int32(),
    "left_duplicate_nonblank_characters": pa.int32(),
    "left_newlines": pa.int32(),
    "left_nonblank_lines": pa.int32(),
    "left_short_lines": pa.int32(),
    "left_terminal_lines": pa.int32(),
    "left_words": pa.int32(),
    "pii_email": pa.uint32(),
    "pii_ip": pa.uint32(),
    "pii_id_number": pa.uint32(),
    "pii_card": pa.uint32(),
    "pii_phone": pa.uint32(),
    "listed_urls": pa.uint32(),
    "listed_url": pa.string(),
    "listed_phrases": pa.uint32(),
    "listed_phrase": pa.string(),
    "perplexity": pa.float32(),
    "quality": pa.float32(),
}

#: Whole numbers, see `stages/corpus_prep/measuring/columns.py` for their meaning.
STATISTICS = (
    "characters",
    "visible_characters",
    "letters",
    "symbols",
    "han",
    "kana",
    "hangul",
    "latin",
    "arabic",
    "cyrillic",
    "digits",
    "replacement_characters",
    "hashes",
    "ellipses",
    "newlines",
    "nonblank_lines",
    "lines",
    "duplicate_lines",
    "duplicate_line_characters",
    "terminal_lines",
    "short_lines",
    "duplicate_nonblank_characters",
    "stripped_characters",
    "duplicate_stripped_characters",
    "paragraphs",
    "duplicate_paragraphs",
    "duplicate_paragraph_characters",
    "broken_lines",
    "bullet_lines",
    "ellipsis_lines",
    "c4_lines",
    "c4_sentences",
    "c4_lorem_lines",
    "c4_curly_lines",
    "c4_terminal_lines",
    "c4_terminal_sentences",
    "c4_terminal_lorem_lines",
    "c4_terminal_curly_lines",
    "words",
    "word_characters",
    "plain_words",
    "plain_word_characters",
    "letter_words",
    "glued_word_characters",
    "stop_words_en",
    "stop_words_zh",
    "repeated_8_grams",
    "top_2_gram_characters",
    "top_3_gram_characters",
    "top_4_gram_characters",
    "duplicate_5_gram_characters",
    "duplicate_6_gram_characters",
    "duplicate_7_gram_characters",
    "duplicate_8_gram_characters",
    "duplicate_9_gram_characters",
    "duplicate_10_gram_characters",
)

#: One row per document that was measured: not those left out while reading, nor those without any text.
#: licence, origin, byte_start, byte_end: as in `documents`. switches: filters that the source's own entry
#: switches, `-fineweb +c4`. split_key: the id whose hash decides on the split. reasons: every rule that it
#: breaks, or why it went otherwise; empty for what was kept. Equal texts have equal ids, so ids may repeat.
DOCUMENT_SCORES = Contract(
    name="document_scores",
    version=1,
    summary="every document that was measured: where it is from, what it was judged by, and the verdict",
    rules=(
        TableRule(
            schema=pa.schema(
                {
                    "doc_id": pa.string(),
                    "source": pa.string(),
                    "verdict": pa.string(),
                    "reasons": pa.list_(pa.string()),
                    "language": pa.string(),
                    "language_score": pa.float32(),
                    "switches": pa.string(),
                    "split_key": pa.string(),
                    "num_bytes": pa.int64(),
                    "title": pa.string(),
                    "licence": pa.string(),
                    "origin": pa.string(),
                    "byte_start": pa.int64(),
                    "byte_end": pa.int64(),
                    **OPTIONAL,
                    **dict.fromkeys(STATISTICS, pa.int32()),
                }
            ),
            allowed={"verdict": VERDICTS},
        ),
    ),
)
