"""The report: pure, escaped, whole when parts are missing, and right about what it says."""

from __future__ import annotations

import html.parser
import math
import re
from itertools import pairwise
from typing import Any

import pytest

from data_contracts.manifest import FileEntry, Hardware, InputEntry, Manifest, PartEntry
from flows.report import (
    RunRecord,
    StageRecord,
    chart_png,
    chart_svg,
    essence,
    render_html,
    render_markdown,
)
from flows.report.axes import Scale, nice_ticks, tick_labels
from flows.report.chart_data import read_chart
from flows.report.formats import clean, percent, size
from flows.report.run_view import RunView
from flows.report.samples import collect
from flows.report.stage_details import changed_settings
from stages.catalog import STAGES
from tests.flows.manifests import empty_key, empty_manifest
from tests.flows.manifests import provenance as made_by

TOP_2_GRAM = "gopher_repetition.top_2_gram"
ATTACK = '<script>alert("x")</script><img src=x onerror=alert(1)>'
VOID = {"meta", "br", "line", "rect", "circle", "path", "polyline"}
ACCURACY_COLUMNS = ["model", "protocol", "accuracy", "95 % interval", "chance", "best constant", "verdict"]
HARDWARE = Hardware(cpu="A <fast> CPU", num_cpus=2, memory_bytes=8 * 10**9, platform="Linux")
Events = dict[str, list[dict[str, Any]]]


def manifest(stage: str, metrics: dict[str, float], **provenance: Any) -> Manifest:
    made: dict[str, Any] = {
        "started_at": "2026-01-02T03:04:05+00:00",
        "seconds": 12.5,
        "peak_memory_bytes": 1_500_000_000,
        "git_commit": "0123abc",
        "packages": {"torch": "2.13.0"},
        "python": "3.11.9",
        "hardware": HARDWARE,
    }
    return empty_manifest(
        stage,
        fingerprint=f"{stage}-fingerprint",
        key=empty_key(stage, inputs={"source: mine.txt": "ab" * 32}),
        inputs={
            "tokens": InputEntry(
                stage="tokenizer", fingerprint="f" * 24, part="tokens", contract="c@1", digest="d"
            )
        },
        parts={"model": PartEntry(contract="checkpoint@2", digest="e", num_rows=None)},
        files=(FileEntry(path="model/model.safetensors", num_bytes=4_000_000, sha256="e"),),
        metrics=metrics,
        provenance=made_by(**(made | provenance)),
    )


def event(event: str, /, **fields: Any) -> dict[str, Any]:
    return {"event": event, "time": 0.0, **fields}


def sample(prompt: str, text: str, kind: str = "text", step: int | None = None) -> dict[str, Any]:
    return event("sample", prompt=prompt, text=text, kind=kind, step=step)


def chart(series: dict[str, list[list[Any]]], kind: str = "line", **fields: Any) -> dict[str, Any]:
    named = {"name": "c", "title": "A chart", "x_label": "step", "y_label": "nats"} | fields
    return event("chart", series=series, kind=kind, **named)


def whole_run() -> tuple[RunRecord, dict[str, Manifest], Events]:
    """A run of all nine stages with what the report looks for in each."""
    metrics: dict[str, dict[str, float]] = {
        "pretrain": {
            "validation_bits_per_byte": 1.9,
            "gzip_bits_per_byte": 2.3,
            "xz_bits_per_byte": 1.8,
            "num_params": 4_197_120.0,
            "train_tokens": 3_400_704.0,
        },
        "sft": {"validation_loss": 0.7, "base_validation_loss": 4.2, "exact_tool_calls": 0.94},
        "dpo": {
            "validation_accuracy": 0.78,
            "validation_accuracy_low": 0.71,
            "validation_accuracy_high": 0.84,
            "num_validation_pairs": 171.0,
        },
        "quantize": {
            "int8_increase": 0.0003,
            "int4_increase": 0.04,
            "int8_bytes": 4.5e6,
            "int4_bytes": 2.6e6,
            "float32_bytes": 16.8e6,
        },
        "vector_store": {"ndcg_at_10_fused": 0.74, "ndcg_at_10_bm25": 0.71, "recall_at_10_vs_exact": 0.99},
        "agent_smoke": {
            "exact_call_fraction_seen": 0.9,
            "exact_call_fraction_seen_low": 0.77,
            "exact_call_fraction_seen_high": 0.96,
            "exact_call_fraction_unseen": 0.55,
            "valid_call_fraction": 1.0,
        },
    }
    accuracy = [
        ["base", "plain", 0.27, "0.22 to 0.32", 0.25, 0.26, "not above chance"],
        ["dpo", "plain", 0.29, "0.24 to 0.34", 0.25, 0.26, "not above chance"],
        ["dpo", "chat", 0.33, "0.28 to 0.39", 0.25, 0.26, "above chance"],
        ["int4", "chat", 0.31, "0.26 to 0.37", 0.25, 0.26, "above chance"],
    ]
    comparisons = [
        ["dpo - base", "accuracy", "plain", "+0.02", "-0.03 to 0.07", "cannot tell apart (p = 0.41)"],
        ["dpo - base", "bits_per_byte", "windows", "+0.004", "0.001 to 0.007", "base better than dpo"],
    ]
    events: Events = {
        "corpus_prep": [
            event(
                "table",
                name="funnel",
                columns=["step", "in", "out", "dropped", "MB out"],
                rows=[["read", 2000, 2000, 0, 2.0], ["quality", 2000, 1500, 500, 1.6]],
                caption="What each step left",
            ),
            event(
                "table",
                name="dropped_examples",
                columns=["step", "reason", "title", "source", "detail", "text"],
                rows=[
                    ["quality", TOP_2_GRAM, "A page", "web.jsonl", "0.31 > 0.2; 1 > 0; 3 < 5", ATTACK],
                    ["quality", TOP_2_GRAM, "", "web.jsonl", "0.4 > 0.2", "buy buy"],
                    ["repaired", "empty", "", "web.jsonl", "", ""],
                ],
                caption="Dropped for each reason",
            ),
            event("log", level="warning", message="two files are the same"),
        ],
        "pretrain": [
            *(event("metrics", step=s, values={"train_loss": 8 / s, "mfu": None}) for s in range(1, 9)),
            chart({"training": [[1, 8.0], [8, 3.0]], "gzip -9": [[1, 2.3], [8, 2.3]]}, name="pretrain_loss"),
            sample("In the year", "of the early step", step=1),
            sample("In the year", "of the last step", step=8),
        ],
        "sft": [sample("Hello!", "Hi.", "chat", 3), sample("In the year", "1999", step=3)],
        "dpo": [sample("Hello!", "Hello there.", "chat", 3)],
        "quantize": [sample("Hello!", "Hello there.", "float32 chat"), sample("Hello!", ATTACK, "int4 chat")],
        "agent_smoke": [
            chart({"seen": [["search", 0.9, 0.7, 1.0]], "unseen": [["search", 0.5, 0.3, 0.7]]}, "bar",
                  name="agent_success"),
        ],
        "benchmark_eval": [
            event(
                "table",
                name="benchmark_accuracy",
                columns=ACCURACY_COLUMNS,
                rows=accuracy,
                caption="",
            ),
            event(
                "table",
                name="benchmark_comparisons",
                columns=["models", "measured by", "protocol", "difference", "95 % interval", "verdict"],
                rows=comparisons,
                caption="",
            ),
        ],
    }  # fmt: skip
    names = [spec.name for spec in STAGES]
    configs = {spec.name: spec.config().model_dump(mode="json") for spec in STAGES}
    configs["sft"]["learning_rate"] = 0.5
    stages = tuple(
        StageRecord(
            name=name,
            outcome="hit" if name == "corpus_prep" else "ran",
            reasons=() if name == "corpus_prep" else ("learning_rate 0.001 -> 0.5",),
            fingerprint=f"{name}-fingerprint",
            seconds=2.5,
        )
        for name in names
    )
    run = RunRecord(
        run_id="run-1",
        preset="laptop",
        started_at="2026-01-02T03:04:05+00:00",
        seconds=75.0,
        command="glassworks build --set sft.learning_rate=0.5",
        status="completed",
        stages=stages,
        configs=configs,
    )
    return run, {name: manifest(name, metrics.get(name, {})) for name in names}, events


class Balance(html.parser.HTMLParser):
    """Checks that elements close in order and collects names, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID or self.get_starttag_text()[-2:] != "/>":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parse(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_the_same_run_gives_the_same_bytes() -> None:
    first, second = whole_run(), whole_run()
    for render in (render_html, render_markdown):
        assert render(*first) == render(*second)
    assert (
        render_html(*first).encode() == render_html(RunRecord(**first[0].model_dump()), *first[1:]).encode()
    )


def test_the_page_is_well_formed_and_needs_nothing_from_outside() -> None:
    parsed = parse(render_html(*whole_run()))
    assert {name for name, _ in parsed.seen} & {"script", "link", "iframe", "img", "object"} == set()
    addresses = [a.get("href") or a.get("src") or "" for _, a in parsed.seen if "href" in a or "src" in a]
    assert addresses and all(address.startswith("#") for address in addresses)
    targets = {attributes["id"] for _, attributes in parsed.seen if "id" in attributes}
    assert {address[1:] for address in addresses} <= targets
    assert "url(" not in render_html(*whole_run()) and "@import" not in render_html(*whole_run())


def test_what_a_model_writes_is_shown_and_never_run() -> None:
    run, manifests, events = whole_run()
    events["sft"].append(event("log", level="warning", message=ATTACK))
    events["sft"].append(event("table", name=ATTACK, columns=[ATTACK], rows=[[ATTACK]], caption=ATTACK))
    events["sft"].append(chart({ATTACK: [[ATTACK, 1.0]]}, "bar", name=ATTACK, title=ATTACK, y_label=ATTACK))
    run = run.model_copy(update={"command": ATTACK, "run_id": ATTACK})
    page = render_html(run, manifests, events)
    parsed = parse(page)
    assert "script" not in {name for name, _ in parsed.seen} and "<img" not in page
    assert not any(key.startswith("on") for _, attributes in parsed.seen for key in attributes)
    assert ATTACK in "".join(parsed.text)
    assert "<script" not in render_markdown(run, manifests, events)
    assert "<img" not in render_markdown(run, manifests, events)


def test_the_batch_is_coloured_by_what_is_trained() -> None:
    run, manifests, events = whole_run()
    row = [
        {"text": "user\nHi", "weight": 0.0, "conversation": 1, "is_cut": False},
        {"text": ATTACK, "weight": 1.0, "conversation": 1, "is_cut": False},
        {"text": "灯塔", "weight": 0.5, "conversation": 2, "is_cut": True},
    ]
    events["sft"].append(event("batch", rows=[row], caption="The first batch"))
    page = render_html(run, manifests, events)
    parse(page)
    assert '<span class="context">user\nHi</span><span class="trained">&lt;script&gt;' in page
    assert page.count('<pre dir="auto"><span class="context">user') == 1
    second = page[page.index('<span class="trained">灯塔') :]
    assert second.startswith(
        '<span class="trained">灯塔<sup>×0.5</sup></span><span class="cut" title="longer'
    )
    assert "Row 1: 2 conversations" in page
    assert "sft showed no batch." in render_html(*whole_run())


def test_dropped_documents_stand_under_their_reason() -> None:
    said = parse(render_html(*whole_run())).text
    first = said.index("Dropped for each reason")
    reason, page, attack, second = (
        said.index(words, first) for words in (TOP_2_GRAM, "A page", ATTACK, "buy buy")
    )
    assert first < reason < page < attack < second < said.index("empty", first)
    assert said.count(TOP_2_GRAM) == 1
    assert "(nothing is left of it)" in said
    assert "web.jsonl · 0.31 > 0.2 · and 2 more" in said


def test_text_that_no_file_can_hold_is_replaced() -> None:
    run, manifests, events = whole_run()
    events["sft"].append(sample("Hello!", "a\ud800b\x00c\x1b[31m", "chat", 9))
    page = render_html(run, manifests, events)
    assert page.encode("utf-8") and "\x00" not in page and "\x1b" not in page
    assert clean("\ud800") in ("\ufffd", "\ufffd" * 3) and clean("å\n\t中") == "å\n\t中"


def test_an_empty_run_says_what_is_missing() -> None:
    run = RunRecord(run_id="r", preset="tiny", started_at="", seconds=0.0, command="c", status="stopped")
    page = render_html(run, {}, {})
    parse(page)
    for said in ("left no funnel", "No curve of: pretrain, sft, dpo", "No stage left a manifest"):
        assert said in page
    assert len(essence(run, {}, {})) == 10
    assert "stopped" in render_markdown(run, {}, {})


def test_a_failed_stage_shows_its_error_and_how_far_it_came() -> None:
    run, manifests, events = whole_run()
    failed = StageRecord(name="pretrain", outcome="failed", error="out of memory\nset depth lower")
    later = [StageRecord(name=spec.name, outcome="not reached") for spec in STAGES[3:]]
    run = run.model_copy(update={"status": "failed", "stages": (*run.stages[:2], failed, *later)})
    events = {"pretrain": [events["pretrain"][0], event("progress", done=3, total=9, unit="steps")]}
    kept = {name: manifests[name] for name in ("corpus_prep", "tokenizer")}
    page = render_html(run, kept, events)
    parse(page)
    assert "set depth lower" in page and "3 of 9 steps" in page
    lines = dict(line.split(maxsplit=1) for line in essence(run, kept, events))
    assert lines["base"] == "pretrain failed: out of memory"
    assert lines["agent"] == "agent_smoke not reached"


def test_a_run_until_a_stage_says_nothing_of_later_ones() -> None:
    run, manifests, _ = whole_run()
    run = run.model_copy(update={"stages": run.stages[:4]})
    kept = {stage.name: manifests[stage.name] for stage in run.stages}
    labels = [line.split()[0] for line in essence(run, kept, {})]
    assert "base" in labels and "cost" in labels
    assert not {"dpo", "int4", "agent", "benchmark"} & set(labels)


@pytest.mark.parametrize("stage", [spec.name for spec in STAGES])
def test_any_stage_may_be_missing(stage: str) -> None:
    run, manifests, events = whole_run()
    parse(render_html(run, {n: m for n, m in manifests.items() if n != stage}, events))
    parse(render_html(run, manifests, {n: e for n, e in events.items() if n != stage}))
    assert len(essence(run, {n: m for n, m in manifests.items() if n != stage}, {})) == 10


def test_the_essence_judges_each_figure() -> None:
    lines = dict(line.split(maxsplit=1) for line in essence(*whole_run()))
    assert list(lines) == [
        "model",
        "base",
        "sft",
        "dpo",
        "int8",
        "int4",
        "search",
        "agent",
        "benchmark",
        "cost",
    ]
    assert lines["model"].startswith("4.2M parameters, 3.4M tokens")
    assert "below gzip -9 (2.300), NOT below xz -9 (1.800)" in lines["base"]
    assert lines["dpo"] == "held-out accuracy 0.780 (0.710 to 0.840), above chance on 171 pairs"
    assert lines["int4"] == "+0.0400 bits per byte, 2.6 MB of 16.8 MB"
    assert "90 % (77 to 96 %) with seen phrasings, 55 % with unseen ones" in lines["agent"]
    assert lines["benchmark"].startswith("dpo accuracy 0.33 (0.28 to 0.39; chance 0.25")
    assert lines["benchmark"].endswith("the models cannot be told apart by the questions")
    assert "1m15s for 9 stages (1 reused), peak memory 1.5 GB" in lines["cost"]


def test_an_accuracy_whose_interval_holds_a_half_is_not_praised() -> None:
    run, manifests, events = whole_run()
    weak = {"validation_accuracy": 0.52, "validation_accuracy_low": 0.45, "validation_accuracy_high": 0.6}
    lines = dict(
        line.split(maxsplit=1) for line in essence(run, manifests | {"dpo": manifest("dpo", weak)}, events)
    )
    assert "cannot be told from chance" in lines["dpo"]


def test_samples_meet_by_prompt_and_the_last_step_counts() -> None:
    found = collect(RunView(*whole_run()))
    assert found["text", "In the year"] == {"base": "of the last step", "sft": "1999"}
    assert list(found["chat", "Hello!"]) == ["sft", "dpo", "float32", "int4"]


def test_a_resumed_stage_shows_each_step_and_table_once() -> None:
    twice = [event("metrics", step=s, values={"train_loss": float(n)}) for n, s in enumerate([1, 2, 3, 2, 3])]
    tables = [event("table", name="t", columns=["a"], rows=[[n]], caption="") for n in range(2)]
    view = RunView(whole_run()[0], {}, {"pretrain": [*twice, *tables]})
    assert view.curves("pretrain") == {"train_loss": [[1, 0.0], [2, 3.0], [3, 4.0]]}
    assert view.tables("pretrain")["t"]["rows"] == [[1]]


def test_changed_settings_are_those_that_differ_from_their_defaults() -> None:
    view = RunView(*whole_run())
    default = next(spec for spec in STAGES if spec.name == "sft").config().model_dump()["learning_rate"]
    assert changed_settings(view, "sft") == [("learning_rate", 0.5, default)]
    assert changed_settings(view, "dpo") == []
    assert "<mark>0.5</mark>" in render_html(*whole_run())


def test_costs_have_a_column_only_where_they_are_known() -> None:
    run, manifests, events = whole_run()
    assert ">cost</th>" not in render_html(run, manifests, events)
    priced = manifests | {"sft": manifest("sft", {}, cost=1.25, resumed=True)}
    page = render_html(run, priced, events)
    assert ">cost</th>" in page and ">1.25</td>" in page and "resumed from a checkpoint" in page


def test_code_that_was_trusted_is_named() -> None:
    run, manifests, events = whole_run()
    trusted = manifests["sft"].model_copy(update={"trusted_code": {"stages/sft/run.py": ["a", "b"]}})
    page = render_html(run, manifests | {"sft": trusted}, events)
    assert "--trust-code): stages/sft/run.py" in page


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (2.9, 8.3, [2.0, 4.0, 6.0, 8.0, 10.0]),
        (-0.02, 0.11, [-0.05, 0.0, 0.05, 0.1, 0.15]),
        (1.0, 1107.0, [0.0, 250.0, 500.0, 750.0, 1000.0, 1250.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (3.0, 3.0), (-7.0, -7.0), (1e-9, 2e-9), (-1e12, 3e12)])
def test_ticks_enclose_every_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1] and 2 <= len(ticks) <= 8
    gaps = [b - a for a, b in pairwise(ticks)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps)) and len(set(tick_labels(ticks))) == len(ticks)


@pytest.mark.parametrize(("low", "high"), [(math.nan, 1.0), (0.0, math.inf), (2.0, 1.0)])
def test_there_are_no_ticks_without_a_range(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="no range"):
        nice_ticks(low, high)


def test_tick_labels_have_the_decimals_of_the_step() -> None:
    assert tick_labels([0.0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert tick_labels([0.0, 20_000.0]) == ["0", "20k"]
    assert Scale(0, 10, 100, 200)(2.5) == 125.0


def test_error_bars_reach_from_low_to_high() -> None:
    drawn = chart_svg(chart({"seen": [["search", 0.5, 0.2, 0.9]]}, "bar"))
    bar = re.search(r'<rect[^>]* x="([\d.]+)"[^>]* width="([\d.]+)"', drawn) or pytest.fail(drawn)
    zero, width = float(bar[1]), float(bar[2])
    whisker = re.search(r'd="M([\d.]+) [^"]*?v6M([\d.]+) ', drawn) or pytest.fail(drawn)
    assert (float(whisker[1]) - zero) / width == pytest.approx(0.2 / 0.5, abs=0.02)
    assert (float(whisker[2]) - zero) / width == pytest.approx(0.9 / 0.5, abs=0.02)


def test_layers_have_no_halves() -> None:
    def names(points: list[list[float]]) -> list[str]:
        drawn = chart_svg(chart({"": points}))
        return re.findall(r'<text x="[^"]*" y="[^"]*" class="mid">([^<]*)</text>', drawn)

    assert names([[1, 0.2], [2, 0.4], [4, 0.3]]) == ["1", "2", "3", "4"]
    assert "0.4" in names([[0.0, 0.2], [0.25, 0.4], [1.0, 0.3]])


def test_a_level_line_is_dashed_and_points_without_a_number_are_left_out() -> None:
    drawn = chart_svg(chart({"model": [[1, 3.0], [2, None], [3, 2.0]], "gzip -9": [[1, 2.3], [3, 2.3]]}))
    lines = re.findall(r'<polyline points="([^"]+)" class="([^"]+)"', drawn)
    assert [len(points.split()) for points, _ in lines] == [2, 2]
    assert ["dashed" in kind for _, kind in lines] == [False, True]


def test_bars_without_intervals_beside_bars_with_them_are_marks_to_compare_with() -> None:
    found = read_chart(chart({"plain": [["dpo", 0.3, 0.2, 0.4]], "chance": [["dpo", 0.25]]}, "bar"))
    assert found is not None and [line.label for line in found.references] == ["chance"]


@pytest.mark.parametrize(
    "series",
    [{}, {"a": []}, {"a": [[1, None]]}, {"a": [[None, 1.0]]}, {"a": [[1, math.nan]]}],
)
def test_a_chart_without_points_is_said_to_be_empty(series: dict[str, list[list[Any]]]) -> None:
    assert "nothing to draw" in chart_svg(chart(series))
    with pytest.raises(ValueError, match="no point"):
        chart_png(chart(series))


@pytest.mark.parametrize(
    "made",
    [
        chart({"one": [[5, 1.0]]}),
        chart({"flat": [[0, 0.0], [1, 0.0], [2, 0.0]]}),
        chart({"below": [["a", -0.5, -0.7, -0.1], ["b", 0.2, 0.1, 0.4]]}, "bar"),
        chart({"close": [["a", 2.01, 2.0, 2.02], ["b", 2.03, 2.02, 2.05]]}, "bar"),
        chart({"points": [[1, 2.0, 1.5, 2.5], [2, 3.0, 2.5, 3.5]]}),
        chart({"a cost of $5 and $6": [["a name that is far longer than there is room for it", 1.0]]}, "bar"),
    ],
)  # fmt: skip
def test_odd_charts_are_drawn_inside_their_frame(made: dict[str, Any]) -> None:
    drawn = chart_svg(made)
    parse(drawn)
    assert "nan" not in drawn and "inf" not in drawn
    width, height = map(
        float, (re.search(r'viewBox="0 0 (\S+) (\S+)"', drawn) or pytest.fail(drawn)).groups()
    )
    for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', drawn):
        assert 0 <= float(x) <= width and 0 <= float(y) <= height
    assert chart_png(made).startswith(b"\x89PNG\r\n")


def test_a_picture_of_a_chart_is_the_same_each_time() -> None:
    made = chart({"training": [[1, 8.0], [2, 3.0]]})
    assert chart_png(made) == chart_png(made)


def test_markdown_tables_survive_pipes_and_newlines() -> None:
    run, manifests, events = whole_run()
    events["dpo"] = [sample("a | b", "first\nsecond | third", "chat", 1)]
    page = render_markdown(run, manifests, events)
    row = next(line for line in page.splitlines() if line.startswith("| a \\| b"))
    assert "first second \\| third" in row


def test_numbers_are_never_rounded_to_a_certainty() -> None:
    assert [percent(x) for x in (0.0, 0.001, 0.5, 0.999, 1.0)] == ["0 %", "0.1 %", "50 %", "99.9 %", "100 %"]
    assert [size(x) for x in (12, 4.5e6, 1.5e9)] == ["12 B", "4.5 MB", "1.5 GB"]
