"""`python -m stages.corpus_prep.warm`: compile every loop of the stage, by running it on a few sentences.

For the build of an image: a container then starts with machine code (`stages/runtime/compiled.py`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from stages.corpus_prep.run import run
from stages.corpus_prep.screening.perplexity import MIN_TRAINING_CHARACTERS
from stages.corpus_prep.screening.quality_classifier import MIN_TEXTS
from stages.corpus_prep.spec import SPEC, CorpusPrepConfig
from stages.runtime.events import EventLog
from stages.runtime.session import StageSession

SENTENCES = (
    "The old bridge over the grey river was built of stone. It carries carts, sheep and letters to the mill.",
    "The old bridge over the grey river was built of stone. It carries carts, sheep and letters to the town.",
    "A lamp burns in the window of the keeper\u2019s house all night; far ships can see it.\r\nSo they say.",
    "\u6cb3\u4e0a\u7684\u77f3\u6865\u5f88\u8001\uff0c\u6bcf\u5929\u6709\u8bb8\u591a\u4eba\u8d70\u8fc7\u3002"
    "\u706f\u5854\u7684\u706f\u5728\u591c\u91cc\u4eae\u7740\uff0c\u8fdc\u5904\u7684\u8239\u90fd\u80fd\u770b\u89c1\u3002",
)
MENU = " ".join(f"word{number}" for number in range(40))
"""A line, a paragraph and a run of words of two documents."""
QUESTION = {"question": "What was the old bridge over the grey river built of?", "choices": ["stone", "wood"]}


def warm(folder: Path) -> None:
    """Run the stage in an empty folder."""
    texts, questions = folder / "texts.jsonl", folder / "questions.jsonl"
    pages = (*SENTENCES, f"{MENU}\n\n{SENTENCES[0][::-1]}", f"{SENTENCES[1][::-1]}\n\n{MENU}")
    _write_texts(texts, pages)
    questions.write_text(json.dumps({**QUESTION, "answer": 0}) + "\n", encoding="utf-8")
    good, words = folder / "good.jsonl", folder / "words.txt"
    _write_texts(good, [SENTENCES[0] * (MIN_TRAINING_CHARACTERS // 100)] * MIN_TEXTS)
    words.write_text("casino\n", encoding="utf-8")
    config = CorpusPrepConfig(
        sources=(str(texts),),
        benchmark_sources=(str(questions),),
        filters=("documentation", "c4_fineweb"),
        thresholds=("c4_fineweb.few_sentences=off",),
        word_lists=(str(words),),
        good_text=(str(good),),
        bad_text=(str(good),),
        near_duplicate_similarity=0.88,
        repeated_paragraph_documents=1,
        repeated_line_documents=1,
        repeated_run_words=40,
        num_question_conversations=1,
        num_tool_conversations=1,
        num_workers=1,
    )
    session = StageSession(
        "corpus_prep", folder / "work", EventLog(folder / "work" / "events.jsonl", as_json=False)
    )
    run(config, {}, {part: folder / "out" / part for part in SPEC.writes}, session)


def _write_texts(path: Path, texts: Iterable[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        warm(Path(name))
