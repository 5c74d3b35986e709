"""The same prompts through every model, from base to int4, side by side."""

from __future__ import annotations

from collections.abc import Iterator

from flows.report.markup import NOTHING, Html, join, missing, paragraph, tag, text
from flows.report.run_view import Event, RunView

MODELS = {
    "base": "pretrain",
    "sft": "sft",
    "dpo": "dpo",
    "float32": "quantize",
    "int8": "quantize",
    "int4": "quantize",
}
"""Column -> the stage that sampled it, in the order in which the models come into being."""
CHAT, TEXT = "chat", "text"
Answers = dict[str, str]


def side_by_side(view: RunView) -> Html:
    """One card per prompt with a box per model; questions first, then beginnings to continue."""
    found = collect(view)
    if not found:
        return missing("No stage sampled a model.")
    absent = [name for name in MODELS if not any(name in answers for answers in found.values())]
    parts = [missing(f"No samples of: {', '.join(absent)}.")] if absent else []
    for kind, title in ((CHAT, "Questions, in the chat format"), (TEXT, "Beginnings, continued")):
        cards = [_card(prompt, answers) for (of_kind, prompt), answers in found.items() if of_kind == kind]
        if cards:
            parts += [tag("h3", text(title)), join(cards)]
    return join(parts)


def collect(view: RunView) -> dict[tuple[str, str], Answers]:
    """(chat or text, prompt) -> model -> what it wrote, always the last step's."""
    found: dict[tuple[str, str], Answers] = {}
    for model, stage in MODELS.items():
        for kind, event in _of_model(view, stage, model):
            found.setdefault((kind, event["prompt"]), {})[model] = event["text"]
    return found


def _of_model(view: RunView, stage: str, model: str) -> Iterator[tuple[str, Event]]:
    for event in view.samples(stage):
        kind = event.get("kind", TEXT)
        if stage == "quantize":
            name, _, mode = kind.partition(" ")
            if name == model:
                yield mode or TEXT, event
        elif kind in (CHAT, TEXT):
            yield kind, event


def _card(prompt: str, answers: Answers) -> Html:
    """Models that wrote the same share a box, so that what differs stands out."""
    writers: dict[str, list[str]] = {}
    for model in MODELS:
        if model in answers:
            writers.setdefault(answers[model], []).append(model)
    boxes = [_box(models, answer) for answer, models in writers.items()]
    head = tag("h4", text(prompt), dir="auto")
    return tag("div", head, tag("div", join(boxes), class_="boxes"), class_="card")


def _box(models: list[str], answer: str) -> Html:
    labels = join((tag("span", text(model)) for model in models), " ")
    return tag("div", tag("div", labels, class_="models"), written(answer), class_="box")


def written(answer: str) -> Html:
    """What a model wrote, as it stands; a note where it wrote nothing."""
    if not answer.strip():
        return paragraph("nothing but white space" if answer else "nothing", "missing")
    return tag("pre", text(answer.strip("\n")), dir="auto")


def prompts_told(events: list[Event]) -> Html:
    """Samples of one stage as a list: prompt, step and text."""
    items = []
    for event in events:
        step = event.get("step")
        note = " · ".join(
            [event.get("kind", TEXT).replace("_", " "), *([] if step is None else [f"step {step:,}"])]
        )
        head = tag(
            "p",
            tag("b", text(event["prompt"])),
            text(" "),
            tag("span", text(note), class_="note"),
            dir="auto",
        )
        items.append(tag("div", head, written(event["text"]), class_="box"))
    return tag("div", join(items), class_="boxes") if items else NOTHING
