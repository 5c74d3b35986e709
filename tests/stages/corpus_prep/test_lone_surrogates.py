"""JSON may escape half of a UTF-16 pair, which no UTF-8 can hold: one such row must not end the stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures" / "corpus_english.jsonl"
ENGLISH = [json.loads(line)["text"] for line in FIXTURE.read_text(encoding="utf-8").splitlines()]
FERRY = "The old ferry crosses the grey river twice a day and carries sheep, letters and tired travellers."


def test_lone_surrogates_of_json_are_mended(run_stage: Any, tmp_path: Path) -> None:
    odd = tmp_path / "odd.jsonl"
    rows = [
        {"title": "half \ud83d", "text": f"{FERRY} {FERRY} \ude00", "url": "https://a.test/\ud800"},
        {"question": "What \ud800 crosses the river?", "answer": f"{FERRY} {FERRY} \ud800"},
        {"weather": "\udfff"},
        *({"text": text} for text in ENGLISH),
    ]
    odd.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = run_stage(sources=(str(odd),), num_tool_conversations=6, num_scenarios=5)
    (document,) = (row for row in result.rows("documents") if row["title"] == "half \ufffd")
    assert document["text"] == f"{FERRY} {FERRY} \ufffd" and document["origin"] == "https://a.test/\ufffd"
    own = next(row for row in result.rows("conversations") if row["kind"] == "own")
    assert [m["content"][-1] for m in own["messages"]] == ["?", "\ufffd"]
    assert [row["reason"] for row in result.rows("rejects")] == ["unknown_fields"]
