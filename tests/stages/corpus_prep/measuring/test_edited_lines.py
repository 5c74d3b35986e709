"""With C4's rules its line edits are done, and FineWeb judges what is left, as datatrove's filters do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.corpus_prep.cleaning import content_id
from stages.corpus_prep.measuring.edited_lines import LEFT_COLUMNS, edit_measured
from stages.corpus_prep.measuring.measures import measure
from tests.stages.corpus_prep.measuring.datatrove_reference import reference_decision

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"
ENGLISH = [
    json.loads(line)["text"]
    for line in (FIXTURES / "corpus_english.jsonl").read_text(encoding="utf-8").splitlines()
]
TALE = "\n".join(
    (
        "The slow train stops at every village between the lake and the mountains.",
        "It carries children in the morning, and baskets full of apples and bread at noon.",
        "In the evening there are only tired walkers, and the conductor knows them all by name.",
        "Nobody is in a hurry. The old engine waits for whoever comes late.",
        "At night it sleeps in a wooden shed behind the station, next to the mill.",
    )
)
MENU = "\n".join(
    ["Home", "Shop", "About us", "Log in", "Cart", "Help", "Next", "More", "Map", "Top", "Back", "Terms"]
)
DOCUMENTS = {
    "clean": TALE,
    "menu": f"{MENU}\n{TALE}",  # FineWeb drops it by its short lines, if C4 did not take them away
    "cited": TALE.replace("lake", "lake [12]").replace("mill", "mill [citation needed]"),
    "policies": f"{TALE}\nThis site uses cookies for a better visit.\nRead our Privacy Policy for more.",
    "scripts": f"Please enable JavaScript to see all of this page.\n{TALE}",
    "lorem": f"{TALE}\nLorem ipsum dolor sit amet, said the sign.",
    "curly": f"{TALE}\nfunction go() {{ return the slow train }}.",
    "few": "Nobody is in a hurry here.\nAbout\nHelp\nThe old engine waits at the mill.",
    "nothing": f"{MENU}\n{MENU}",
    "twice": f"{TALE}\n{TALE}\n{MENU}",  # still duplicate lines after the edit
    "unpunctuated": TALE.replace(".", ""),
}


def _expected(name: str, text: str) -> tuple[str, str]:
    """(set that drops it or "", text that is left) by datatrove's two filters one after the other."""
    for step in (name, "fineweb"):
        reason, text = reference_decision(step, "en", text)
        if reason:
            return step, text
    return "", text


def _run(run_stage: Any, folder: Path, filters: tuple[str, ...]) -> Any:
    path = folder / "web.jsonl"
    rows = [{"title": name, "text": text} for name, text in DOCUMENTS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"num_tool_conversations": 6, "num_scenarios": 5, "num_workers": 1}
    return run_stage(sources=(str(path),), filters=filters, near_duplicate_similarity=0, **settings)


def test_datatroves_filters_in_a_row(run_stage: Any, tmp_path: Path) -> None:
    # Five of the texts are the same one after the edit: duplicates are a matter of their own.
    result = _run(run_stage, tmp_path, ("c4_fineweb", "fineweb"))
    kept = {row["title"]: row for row in result.rows("documents")}
    dropped = {row["title"]: row for row in result.rows("rejects")}
    expected = {name: _expected("c4_fineweb", text) for name, text in DOCUMENTS.items()}
    assert {name for name, (step, _) in expected.items() if not step} == {
        "clean", "menu", "cited", "policies", "scripts",
    }  # fmt: skip
    for name, (step, text) in expected.items():
        if step:
            assert dropped[name]["reason"].split(".")[0] == step.removesuffix("_fineweb"), name
        elif name in kept:
            assert kept[name]["text"] == text and kept[name]["doc_id"] == content_id(text)
        else:
            assert dropped[name]["reason"] == "exact_duplicate"
            assert dropped[name]["detail"] == f"of {content_id(text)}"


def test_a_source_may_ask_for_c4_alone(run_stage: Any, tmp_path: Path) -> None:
    plain, asked = tmp_path / "plain.jsonl", tmp_path / "asked.jsonl"
    text = json.dumps({"title": "menu", "text": DOCUMENTS["menu"]}) + "\n"
    for path in (plain, asked):
        path.write_text(text, encoding="utf-8")
    settings = {"num_tool_conversations": 6, "num_scenarios": 5, "near_duplicate_similarity": 0}
    sources = (str(plain), f"{asked};filters=+c4_fineweb")
    result = run_stage(sources=sources, filters=(), num_workers=1, **settings)
    kept = {row["source"]: row["text"] for row in result.rows("documents")}
    assert kept == {"plain.jsonl": DOCUMENTS["menu"], "asked.jsonl": TALE}


def test_without_c4_nothing_is_edited(run_stage: Any, tmp_path: Path) -> None:
    result = _run(run_stage, tmp_path, ("fineweb",))
    kept = {row["title"]: row["text"] for row in result.rows("documents")}
    expected = {n for n, text in DOCUMENTS.items() if not reference_decision("fineweb", "en", text)[0]}
    assert set(kept) == expected and "menu" not in kept
    assert all(text == DOCUMENTS[name] for name, text in kept.items())


def test_what_is_stored_of_edited_and_other_documents() -> None:
    texts = pa.array([*DOCUMENTS.values(), *ENGLISH], pa.large_string())
    statistics = measure(texts)
    asked = pa.array([name != "clean" for name in DOCUMENTS] + [False] * len(ENGLISH)).to_numpy(False)
    for name in ("c4", "c4_fineweb"):
        edited = edit_measured(texts, statistics, {name: asked})
        again = measure(edited.texts)
        for number, changed in enumerate(edited.changed.tolist()):
            assert changed == (edited.texts[number] != texts[number])
            for column in ("text_hash", "signature"):
                assert edited.statistics[column][number] == again[column][number]
            for column in ("words", "c4_sentences", "characters"):  # of the text that came
                assert edited.statistics[column][number] == statistics[column][number]
            left = [edited.left[f"left_{column}"][number].as_py() for column in LEFT_COLUMNS]
            whole = [again[column][number].as_py() for column in LEFT_COLUMNS]
            assert left == (whole if changed else [None] * len(LEFT_COLUMNS))
        changed_names = {n for n, c in zip(DOCUMENTS, edited.changed.tolist(), strict=False) if c}
        assert {"menu", "cited", "policies", "scripts"} <= changed_names
        assert not {"clean", "lorem", "curly", "nothing"} & changed_names
