"""Near-duplicate conversations and pairs against a plain loop over Jaccard similarities."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from data_contracts.tables import read_rows
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.held_records import HeldRecord, Records
from stages.corpus_prep.reading.messages import Message
from stages.corpus_prep.reading.record_forms import Conversation, PreferencePair
from stages.corpus_prep.record_rows import record_id
from stages.corpus_prep.record_selection import ChosenRecords, choose_records
from stages.corpus_prep.screening.screen_records import Talk, duplicate_key

SIMILARITY = 0.7
MARGIN = 0.1
"""So far from the threshold a signature of 112 hashes is as good as always right."""
WORDS = [
    a + b for a in ("la", "ri", "sto", "be", "ku", "ma", "no", "ti") for b in ("mp", "ver", "ne", "ll", "r")
]


def talk(question: str, answer: str, tools: str = "") -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), tools)


def pair(question: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(
        (Message("user", question),), Message("assistant", chosen), Message("assistant", rejected)
    )


def grams(record: Talk) -> frozenset[tuple[str, ...]]:
    """5-grams of the words of everything that is said."""
    last = (record.chosen, record.rejected) if isinstance(record, PreferencePair) else ()
    turns = (record.prompt if isinstance(record, PreferencePair) else record.messages) + last
    words = re.findall(r"[a-z]+|\d+", " ".join(turn.content for turn in turns).lower())
    return frozenset(tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4)))


def jaccard(a: Talk, b: Talk) -> float:
    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


def edited(words: Sequence[str], edits: int, rng: random.Random) -> list[str]:
    changed = list(words)
    for place in rng.sample(range(len(words)), edits):
        changed[place] = rng.choice(WORDS)
    return changed


def families(make: Callable[[str, str], Talk], number: int = 24) -> dict[str, list[Talk]]:
    """Texts with copies that have one to eight words changed, spread over two sources."""
    rng = random.Random(1)
    found: dict[str, list[Talk]] = {"b.jsonl": [], "a.jsonl": []}
    for family in range(number):
        words = rng.choices(WORDS, k=120)
        for copy in range(6):
            said = edited(words, copy + family % 3, rng)
            found["ab"[rng.random() < 0.5] + ".jsonl"].append(make(" ".join(said[:30]), " ".join(said[30:])))
    return found


class Outcome:
    """What `choose_records` made of some records."""

    def __init__(self, by_source: dict[str, list[Talk]], similarity: float, folder: Path) -> None:
        self.records = Records(1000, 1000)
        for source, records in by_source.items():
            for record in records:
                self.records.add(source, duplicate_key(record), HeldRecord(record, "MIT", source))
        funnel = Funnel(folder / "rejects")
        self.chosen: ChosenRecords = choose_records(self.records, similarity, funnel, folder / "work")
        funnel.close()
        self.rejects = list(read_rows(folder / "rejects"))
        held = (*self.chosen.records.conversations.values(), *self.chosen.records.preferences.values())
        self.kept = {key: item.record for sample in held for key, item in sample.items()}
        self.all = {record_id(record): record for records in by_source.values() for record in records}


def as_pair(question: str, answer: str) -> PreferencePair:
    return pair(question, answer, f"No, {answer.split(maxsplit=1)[0]}.")


@pytest.mark.parametrize("make", [talk, as_pair])
def test_what_stays_and_what_goes_by_a_plain_loop(make: Callable[..., Talk], tmp_path: Path) -> None:
    outcome = Outcome(families(make), SIMILARITY, tmp_path)
    rows = [row for row in outcome.rejects if row["reason"] == "near_duplicate"]
    assert 20 < len(rows) < len(outcome.all) and len(rows) + len(outcome.kept) == len(outcome.all)
    staying = {record_id(record): record for record in outcome.kept.values()}
    for one, other in itertools.combinations(staying.values(), 2):
        assert jaccard(one, other) < SIMILARITY + MARGIN
    order = {record_id(r): (s == "a.jsonl", duplicate_key(r)) for s, rs in families(make).items() for r in rs}
    for row in rows:
        told, keeper = re.fullmatch(r"([\d.]+) like (\w+)", row["detail"]).groups()  # type: ignore[union-attr]
        similarity = jaccard(outcome.all[row["doc_id"]], staying[keeper])
        assert similarity >= SIMILARITY - MARGIN and abs(similarity - float(told)) < 0.15
        assert order[keeper] < order[row["doc_id"]], "the first source, then the smaller key"
        assert (row["step"], row["licence"], row["origin"]) == ("records", "MIT", row["source"])


@pytest.mark.parametrize("make", [talk, as_pair])
def test_nothing_alike_lies_astride_train_and_validation(make: Callable[..., Talk], tmp_path: Path) -> None:
    outcome = Outcome(families(make), SIMILARITY, tmp_path)
    sides = {key: outcome.chosen.split_of(key, 0.5) for key in outcome.kept}
    assert 5 < Counter(sides.values())["validation"] < len(sides) - 5
    group = {name: {name} for name in outcome.all}
    for one, other in itertools.combinations(outcome.all, 2):
        alike = jaccard(outcome.all[one], outcome.all[other]) >= SIMILARITY + MARGIN
        if alike and group[one] is not group[other]:
            group[one] |= group[other]
            for name in group[other]:
                group[name] = group[one]
    names = {record_id(record): sides[key] for key, record in outcome.kept.items()}
    together = {id(members): {names[name] for name in members if name in names} for members in group.values()}
    assert all(len(found) <= 1 for found in together.values())
    assert len(set(outcome.chosen.groups.values())) < len(names), "some groups have several that stay"


def test_numbers_tell_questions_apart(tmp_path: Path) -> None:
    sums = [talk(f"How much is {a} and {a + 3}, please?", f"That is {2 * a + 3}.") for a in range(60)]
    arabic = [talk(f"كم هو {chr(0x661 + a)} من هذه القوارب في الميناء", "نعم") for a in range(5)]
    outcome = Outcome({"s": [*sums, *arabic]}, 0.5, tmp_path)
    assert len(outcome.kept) == 65 and outcome.rejects == []


def test_pairs_of_one_prompt_stay_on_one_side_and_may_share_an_answer(tmp_path: Path) -> None:
    rng = random.Random(2)
    pairs = []
    for number in range(40):
        question, right = f"Question {number} about boats?", " ".join(rng.choices(WORDS, k=12))
        pairs += [pair(question, right, " ".join(rng.choices(WORDS, k=12))) for _ in range(3)]
    outcome = Outcome({"p": pairs}, 0.8, tmp_path)
    assert len(outcome.kept) == 120
    sides: dict[str, set[str]] = {}
    for key, record in outcome.kept.items():
        sides.setdefault(record.prompt[0].content, set()).add(outcome.chosen.split_of(key, 0.5))
    assert Counter(len(found) for found in sides.values()) == {1: 40}
    assert set.union(*sides.values()) == {"train", "validation"}


def test_a_near_duplicate_draws_the_other_pairs_of_its_prompt_along(tmp_path: Path) -> None:
    rng = random.Random(5)
    pairs: list[Talk] = []
    family: dict[str, int] = {}
    for number in range(30):
        question, right, wrong, other = (" ".join(rng.choices(WORDS, k=size)) for size in (90, 9, 9, 60))
        like = " ".join(edited(question.split(), 1, rng))
        pairs += [pair(question, right, wrong), pair(question, other, wrong), pair(like, right, wrong)]
        family |= {question: number, like: number}
    outcome = Outcome({"p": pairs}, SIMILARITY, tmp_path)
    assert len(outcome.kept) == 60
    sides = {
        (family[record.prompt[0].content], outcome.chosen.split_of(key, 0.5))
        for key, record in outcome.kept.items()
    }
    assert len(sides) == 30


def test_long_instructions_in_common_make_no_duplicates(tmp_path: Path) -> None:
    rng = random.Random(4)
    rules, article = (" ".join(rng.choices(WORDS, k=300)) for _ in range(2))
    talks: list[Talk] = []
    for _ in range(30):
        question = " ".join(rng.choices(WORDS, k=4))
        asked = Message("user", question), Message("assistant", "I cannot help with that.")
        talks.append(Conversation((Message("system", rules), *asked)))
        talks.append(talk(f"{article} {question}", " ".join(rng.choices(WORDS, k=8))))
    said = talk(f"{article} How many?", "There are seven of them in the harbour.")
    again = talk(f"{article} So how many?", "There are seven of them in the harbour now.")
    outcome = Outcome({"s": [*talks, said, again]}, SIMILARITY, tmp_path)
    assert [row["reason"] for row in outcome.rejects] == ["near_duplicate"]
    assert outcome.rejects[0]["doc_id"] in {record_id(said), record_id(again)}


@pytest.mark.parametrize("similarity", [0.0, 0.8])
def test_copies_are_recorded_whatever_the_similarity(similarity: float, tmp_path: Path) -> None:
    first, other = talk("Why?", "Because it is so."), talk("Who?", "The keeper of the lamp.")
    told = talk("Why?", "Because it is so.", '[{"type": "function", "function": {"name": "f"}}]')
    loud = talk("WHY?", "because  it is so.")
    outcome = Outcome({"x": [first, loud, first, told], "y": [other, loud]}, similarity, tmp_path)
    copies = [row for row in outcome.rejects if row["reason"] == "exact_duplicate"]
    assert [row["source"] for row in copies] == ["x", "x", "y"]
    assert {row["detail"] for row in copies} == {f"of {record_id(first)}"}
    assert len(outcome.kept) == (2 if similarity else 3), "with other tools it says the same"


def test_copies_are_counted_alike_however_the_source_is_cut(tmp_path: Path) -> None:
    rng = random.Random(3)
    read = [talk(f"Question {rng.randrange(80)}?", "Yes.") for _ in range(400)]
    counts = []
    for size in (400, 7):
        whole = Records(20, 20)
        for begin in range(0, 400, size):
            part = Records(20, 20)
            for number, record in enumerate(read[begin : begin + size], start=begin):
                part.add("s", duplicate_key(record), HeldRecord(record, begin=number))
            part.write(tmp_path / "part.jsonl")
            whole.read(tmp_path / "part.jsonl")
        counts.append([(key, held.begin, held.copies) for key, held in whole.conversations["s"].items()])
    times = Counter(map(duplicate_key, read))
    assert counts[0] == counts[1]
    assert [(key, times[key] - 1) for key in sorted(times)[:20]] == [(key, n) for key, _, n in counts[0]]
