"""Statistics of the own splitter, against plain Python over whole strings."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from stages.corpus_prep.measuring.columns import COLUMNS
from stages.corpus_prep.measuring.line_edits import edit_c4_lines
from stages.corpus_prep.measuring.measures import SCHEMA, measure, word_hashes
from stages.corpus_prep.quality_filters import word_list

PIECES = (
    "the", "of", "Wörter", "mañana", "数据", "湖边的小屋", "ひらがな", "한국어", "مرحبا", "привет",
    "42", "3.5", "e\u0301", "_", "#", "...", "....", "…", "\ufffd", "• item", "- item", "{", "lorem ipsum",
    "x" * 201, ".", "。", "!", "😀", "𠀀", " ", "  ", "\n", "\n\n", "\r\n", "\t", "\u3000", "\x85", "\x00",
)  # fmt: skip


def _random_texts(number: int) -> list[str]:
    rng = random.Random(7)
    texts = ["", " ", "\n", "a", "\n\n\n", "a\n\na", "a b a b a b"]
    for _ in range(number):
        pool = rng.sample(PIECES, rng.randrange(1, len(PIECES)))
        blank = rng.choice(["", " ", " "])
        texts.append(blank.join(rng.choices(pool, k=rng.randrange(1, 120))))
    return texts


def _runs(words: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def _top(words: list[str], size: int) -> int:
    counts = Counter(" ".join(run) for run in _runs(words, size))
    return max((count * len(run) for run, count in counts.most_common(1)), default=0)


def _duplicated(words: list[str], size: int) -> int:
    seen, place, characters = set(), 0, 0
    while place <= len(words) - size:
        run = tuple(words[place : place + size])
        characters += sum(map(len, run)) if run in seen else 0
        place += size if run in seen else 1
        seen.add(run)
    return characters


def _expected(text: str) -> dict[str, int]:
    # The words of `word_list`, which does not know that a combining mark belongs to the letter before.
    words = word_list(text) if "\u0301" not in text and "𠀀" not in text else None
    lines = [line for line in text.split("\n") if line.strip()]
    stripped = Counter(line.strip() for line in lines)
    found = {
        "characters": len(text),
        "visible_characters": len("".join(text.split())),
        "letters": sum(map(str.isalpha, text)),
        "han": len(re.findall("[\u3400-\u9fff\U00020000-\U0003134f]", text)),
        "kana": len(re.findall("[\u3040-\u30ff]", text)),
        "hangul": len(re.findall("[\uac00-\ud7af]", text)),
        "latin": len(re.findall("[A-Za-z\u00c0-\u024f]", text)),
        "arabic": len(re.findall("[\u0600-\u06ff]", text)),
        "cyrillic": len(re.findall("[\u0400-\u04ff]", text)),
        "digits": len(re.findall(r"\d", text)),
        "replacement_characters": text.count("\ufffd"),
        "hashes": text.count("#"),
        "ellipses": text.count("...") + text.count("…"),
        "newlines": text.count("\n"),
        "nonblank_lines": len(lines),
        "stripped_characters": sum(len(line.strip()) for line in lines),
        "duplicate_stripped_characters": sum(len(line) * (n - 1) for line, n in stripped.items()),
        "broken_lines": len(text.splitlines()),
    }
    if words is not None:
        grams = _runs(words, 8)
        found |= {
            "words": len(words),
            "word_characters": sum(map(len, words)),
            "glued_word_characters": sum(len(word) for word in words if len(word) > 200),
            "repeated_8_grams": len(grams) - len(set(grams)),
            **{f"top_{n}_gram_characters": _top(words, n) for n in (2, 3, 4)},
            **{f"duplicate_{n}_gram_characters": _duplicated(words, n) for n in range(5, 11)},
        }
    return found


def test_statistics_are_those_of_plain_python() -> None:
    texts = _random_texts(400)
    measured = measure(pa.array(texts, pa.large_string())).to_pylist()
    for text, row in zip(texts, measured, strict=True):
        expected = _expected(text)
        assert {name: row[name] for name in expected} == expected, repr(text)


def test_nothing_depends_on_what_else_is_in_the_batch() -> None:
    texts = _random_texts(60)
    array = pa.array(texts, pa.large_string())
    whole = measure(array)
    assert whole.schema == SCHEMA
    assert measure(array[20:41]).equals(whole.slice(20, 21))
    single = pa.Table.from_batches([measure(array[i : i + 1]) for i in range(len(texts))])
    assert single.equals(pa.Table.from_batches([whole]))
    assert measure(array[:0]).num_rows == 0
    offsets, hashes = word_hashes(array)
    some, some_hashes = word_hashes(array[20:41])
    assert (some + offsets[20] == offsets[20:42]).all()
    assert (some_hashes == hashes[offsets[20] : offsets[41]]).all()


def test_a_null_is_an_empty_text() -> None:
    with_null = measure(pa.array(["a b", None, "c"], pa.large_string()))
    assert with_null.equals(measure(pa.array(["a b", "", "c"], pa.large_string())))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("A b\n\n C", " a  B c ", True),
        ("ЁЛКА", "ёлка", True),
        ("湖边", "湖\u3000边", False),
        ("ab c", "a bc", False),
        ("ab", "ba", False),
        ("", " \n", True),
        ("a" * 2, "a" * 3, False),
        ("a\x00", "a", False),
    ],
)
def test_text_hashes_are_equal_up_to_case_and_white_space(one: str, other: str, equal: bool) -> None:
    hashes = measure(pa.array([one, other], pa.large_string())).column("text_hash")
    assert (hashes[0] == hashes[1]) is equal


def test_text_hashes_of_many_texts_differ() -> None:
    texts = [f"{a} {b}" for a in range(150) for b in "abcdefghijklmnopqrstuvwxyz"]
    hashes = measure(pa.array(texts, pa.large_string())).column("text_hash")
    assert len(hashes.unique()) == len(texts)
    for half in (slice(0, 8), slice(8, 16)):
        assert len({value[half] for value in hashes.to_pylist()}) == len(texts)


class _Halves:
    """Cuts each text into two words."""

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text) // 2), (len(text) // 2, len(text))]

    def num_sentences(self, line: str) -> int:
        return line.count(";")


def test_words_and_sentences_of_a_splitter_are_counted() -> None:
    texts = pa.array(["数据; is here; now;\nand one; here", "abcd"], pa.large_string())
    measured = measure(texts, _Halves()).to_pylist()
    assert [(row["words"], row["word_characters"]) for row in measured] == [(2, 31), (2, 4)]
    assert [row["c4_sentences"] for row in measured] == [4, 0]
    assert measure(texts, _Halves()).column("signature").equals(measure(texts).column("signature"))


def test_a_splitter_that_leaves_the_text_is_refused() -> None:
    class Beyond(_Halves):
        def spans(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text) + 1)]

    with pytest.raises(ValueError, match="not in order inside the text of 4 characters"):
        measure(pa.array(["abcd"], pa.large_string()), Beyond())


def test_c4_edits() -> None:
    text = "  A line [12] that stays.\nShort one\nAllow JavaScript to see this.\nNo full stop at the end\r\n"
    edited, dropped = edit_c4_lines(pa.array([text, "", text], pa.large_string())[1:])
    assert edited.to_pylist() == ["", "A line  that stays.\nNo full stop at the end"]
    assert dropped.tolist() == [0, 2]
    edited, dropped = edit_c4_lines(pa.array([text]).cast(pa.large_string()), terminal_punctuation=True)
    assert edited.to_pylist() == ["A line  that stays."]
    assert dropped.tolist() == [3]


def test_importing_what_measures_imports_no_numba(repository: Path) -> None:
    code = (
        "import sys; from stages.corpus_prep.measuring import judging, line_edits, measures;"
        "print('numba' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "False"


def test_every_column_is_explained() -> None:
    assert all(COLUMNS.values())
    assert len(set(COLUMNS.values())) >= len(COLUMNS) - 8  # "the same of 3 words"
