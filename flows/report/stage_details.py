"""Under each stage all that it emitted and that has no place further up, its settings and its origin."""

from __future__ import annotations

from typing import Any

from flows.report.charts import chart_svg
from flows.report.formats import MISSING, cell, size
from flows.report.markup import (
    NOTHING,
    Html,
    bullets,
    details,
    join,
    missing,
    paragraph,
    table,
    table_of,
    tag,
    text,
)
from flows.report.run_view import Event, RunView
from flows.report.samples import prompts_told
from flows.report.sections import INSIDE, SCORES, SHOWN_TABLES, SIZES, TRAINED, badge, metric_charts
from stages.catalog import STAGES

SPECS = {spec.name: spec for spec in STAGES}
MAX_MESSAGES = 200


def stages(view: RunView) -> Html:
    """One closed part per stage."""
    return join(_stage(view, name) for name in view.stage_names)


def _stage(view: RunView, name: str) -> Html:
    summary = SPECS[name].summary if name in SPECS else ""
    title = join([tag("b", text(name)), text(" "), badge(view.stage(name).outcome), text(" ")])
    body = [
        _charts(view, name),
        _tables(view, name),
        _metrics(view, name),
        _samples(view, name),
        _messages(view, name),
    ]
    content = join(part for part in body if part) or missing("It left nothing to show.")
    shown = details(join([title, tag("span", text(summary), class_="note")]), content)
    return tag("div", shown, id=f"stage-{name}", class_="stage")


def _charts(view: RunView, name: str) -> Html:
    placed = {
        chart for stage, chart in (*SCORES, *SIZES, *INSIDE, ("corpus_prep", "funnel")) if stage == name
    }
    emitted = view.charts(name)
    in_curves = name in TRAINED
    charts = [
        event
        for key, event in emitted.items()
        if key not in placed and not (in_curves and event.get("kind") == "line")
    ]
    drawn = {label for event in emitted.values() for label in event.get("series", {})}
    rest = [key for key in view.curves(name) if key not in drawn and not (in_curves and key.endswith("loss"))]
    charts += [chart for key in rest for chart in metric_charts(view, name, (key,))]
    return tag("div", join(chart_svg(event) for event in charts), class_="charts") if charts else NOTHING


def _tables(view: RunView, name: str) -> Html:
    emitted = [event for key, event in view.tables(name).items() if (name, key) not in SHOWN_TABLES]
    return tag("div", join(_table(event) for event in emitted), class_="tables") if emitted else NOTHING


def _table(event: Event) -> Html:
    return table(event["columns"], event["rows"], event.get("caption") or event["name"].replace("_", " "))


def _metrics(view: RunView, name: str) -> Html:
    manifest = view.manifests.get(name)
    if manifest is None or not manifest.metrics:
        return NOTHING
    rows = [[key, value] for key, value in manifest.metrics.items()]
    return details(text("Headline figures"), table(["figure", "value"], rows))


def _samples(view: RunView, name: str) -> Html:
    events = view.samples(name)
    if not events:
        return NOTHING
    return details(text(f"Samples ({len(events)})"), prompts_told(events))


def _messages(view: RunView, name: str) -> Html:
    said = view.messages(name)
    if not said:
        return NOTHING
    left_out = [f"… and {len(said) - MAX_MESSAGES:,} more"] if len(said) > MAX_MESSAGES else []
    return details(text(f"Log ({len(said)})"), bullets([*said[:MAX_MESSAGES], *left_out]))


def configuration(view: RunView) -> Html:
    """The settings that differ from their defaults, then all of them by stage."""
    changed = [
        [text(name), tag("code", text(field)), text(cell(value)), text(cell(default))]
        for name in view.stage_names
        for field, value, default in changed_settings(view, name)
    ]
    head = [text(column) for column in ("stage", "setting", "in this run", "default")]
    first = table_of(head, changed) if changed else paragraph("Every setting has its default.")
    return join([first, *(_settings(view, name) for name in view.stage_names)])


def changed_settings(view: RunView, name: str) -> list[tuple[str, Any, Any]]:
    """(setting, value, default) of every setting of the stage that differs from its default."""
    defaults = _defaults(name)
    config = view.config(name)
    return [
        (key, config[key], defaults[key])
        for key in config
        if key in defaults and config[key] != defaults[key]
    ]


def _defaults(name: str) -> dict[str, Any]:
    """The defaults as JSON values; empty for a stage that the catalog does not know."""
    if name not in SPECS:
        return {}
    fields = SPECS[name].config.model_fields
    plain = SPECS[name].config.model_construct().model_dump(mode="json", warnings=False)
    return {key: plain[key] for key, field in fields.items() if not field.is_required() and key in plain}


def _settings(view: RunView, name: str) -> Html:
    config = view.config(name)
    if not config:
        return missing(f"{name}: no settings are recorded.")
    changed = {key for key, _, _ in changed_settings(view, name)}
    fields = SPECS[name].config.model_fields if name in SPECS else {}
    rows = []
    for key, value in config.items():
        mark = tag("mark", text(cell(value))) if key in changed else text(cell(value))
        about = fields[key].description if key in fields else ""
        rows.append([tag("code", text(key)), mark, tag("span", text(about or ""), class_="note")])
    note = f" ({len(changed)} changed)" if changed else ""
    head = [text(column) for column in ("setting", "value", "what it is")]
    return details(text(f"{name}{note}"), table_of(head, rows))


def provenance(view: RunView) -> Html:
    """From what and on what the artifacts were made."""
    made = {name: view.manifests[name] for name in view.stage_names if name in view.manifests}
    if not made:
        return missing("No stage left a manifest.")
    origin = [
        [
            name,
            m.provenance.started_at,
            m.provenance.git_commit,
            m.provenance.python,
            m.provenance.image_digest,
        ]
        for name, m in made.items()
    ]
    parts = [table(["stage", "made at", "git commit", "Python", "image"], origin)]
    parts += [_hardware(view), _lineage(view), _packages(view)]
    return join(parts)


def _hardware(view: RunView) -> Html:
    """Machines with the stages that ran on them; most runs have one."""
    machines: dict[tuple[str, ...], list[str]] = {}
    for name in view.stage_names:
        if name in view.manifests:
            h = view.manifests[name].provenance.hardware
            key = (h.cpu, str(h.num_cpus), size(h.memory_bytes), ", ".join(h.gpus) or "none", h.platform)
            machines.setdefault(key, []).append(name)
    rows = [[*key, "all" if len(machines) == 1 else ", ".join(names)] for key, names in machines.items()]
    return table(["CPU", "cores", "memory", "GPUs", "platform", "stages"], rows, "Hardware")


def _lineage(view: RunView) -> Html:
    rows = [
        [name, role, f"{entry.stage}.{entry.part}", entry.contract, entry.fingerprint[:10], entry.digest[:10]]
        for name in view.stage_names
        if name in view.manifests
        for role, entry in view.manifests[name].inputs.items()
    ]
    for name in view.stage_names:
        if name in view.manifests:
            outside = {k: v for k, v in view.manifests[name].key.inputs.items() if k.startswith("source: ")}
            rows += [[name, key, "outside the store", MISSING, MISSING, v[:10]] for key, v in outside.items()]
    columns = ["stage", "role", "read from", "contract", "artifact", "content digest"]
    return details(text(f"Inputs ({len(rows)})"), table(columns, rows))


def _packages(view: RunView) -> Html:
    versions: dict[str, dict[str, list[str]]] = {}
    for name in view.stage_names:
        if name in view.manifests:
            for package, version in view.manifests[name].provenance.packages.items():
                versions.setdefault(package, {}).setdefault(version, []).append(name)
    rows = [
        [package, "; ".join(v if len(found) == 1 else f"{v} ({', '.join(s)})" for v, s in found.items())]
        for package, found in sorted(versions.items(), key=lambda item: item[0].lower())
    ]
    return details(text(f"Packages ({len(rows)})"), table(["package", "version"], rows))
