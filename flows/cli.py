"""The command line. Starts at once: Prefect is imported only by what runs flows, torch never."""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows.backends import DEFAULT_BACKEND, BackendName, backend_named
from flows.commands import build_command, chat_command, plan_rows, rerun_command, serve_ui, specs_until
from flows.compare import compare_runs
from flows.dropped import show_dropped
from flows.garbage import find_garbage, remove
from flows.gpus import refuse_devices
from flows.images_cli import app as images_app
from flows.operations_cli import app as operations
from flows.plan import plan_build, refuse_in_vain, rerun_set
from flows.preflight import run_checks
from flows.records import earlier_run, find_artifact, read_record
from flows.settings import DEFAULT_PRESET, build_settings
from flows.shared_garbage import find_remote_garbage, remove_remote
from flows.show import show_artifact
from flows.store_use import alone, alone_among_hosts
from flows.stores import nearby_store, open_store, shared
from stages.runtime.errors import GlassworksError, UserError
from stages.runtime.events import format_seconds
from stages.runtime.fingerprint import REPOSITORY
from stages.runtime.store import Store

if TYPE_CHECKING:
    from flows.shared_store import SharedStore

app = typer.Typer(
    name="glassworks",
    help="From raw text to a tested assistant: nine stages, each of them glass.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(operations)
app.add_typer(images_app, name="images")

StoreOption = Annotated[
    str,
    typer.Option(
        "--store", envvar="GLASSWORKS_STORE", help="Folder of the artifacts, or s3://BUCKET/PREFIX."
    ),
]
PresetOption = Annotated[str, typer.Option("--preset", "-p", help="tiny, laptop, gpu, or a TOML file.")]
SourceOption = Annotated[
    list[str] | None, typer.Option("--source", help="Own data: file, folder or quoted glob. Repeat it.")
]
BenchmarkOption = Annotated[
    list[str] | None, typer.Option("--benchmark", help="Own multiple-choice questions. Repeat it.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="STAGE.FIELD=VALUE, such as pretrain.depth=6. Repeat it.")
]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-code", help="Keep artifacts although code or packages changed; they then say so."),
]
BackendOption = Annotated[
    BackendName, typer.Option("--backend", envvar="GLASSWORKS_BACKEND", help="Where stages run.")
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option("--limit", help="STAGE.LIMIT=NUMBER for containers, such as dpo.memory_gib=8. Repeat it."),
]
DEFAULT_STORE = "store"


@app.command()
def build(
    preset: PresetOption = DEFAULT_PRESET,
    source: SourceOption = None,
    benchmark: BenchmarkOption = None,
    change: SetOption = None,
    force: Annotated[list[str] | None, typer.Option("--force", help="Run this stage in any case.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Stop after this stage.")] = None,
    trust_code: TrustOption = False,
    backend: BackendOption = DEFAULT_BACKEND,
    limit: LimitOption = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Build everything that is not there yet: interrupt it, repeat it, it goes on."""
    settings = build_settings(
        preset,
        sources=source or (),
        benchmarks=benchmark or (),
        changes=change or (),
        force=force or (),
        trust_code=trust_code,
    )
    sys.exit(build_command(open_store(store), settings, until, backend_named(backend, limit or ())))


@app.command()
def plan(
    preset: PresetOption = DEFAULT_PRESET,
    source: SourceOption = None,
    benchmark: BenchmarkOption = None,
    change: SetOption = None,
    force: Annotated[list[str] | None, typer.Option("--force", help="As in build.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="As in build.")] = None,
    trust_code: TrustOption = False,
    backend: BackendOption = DEFAULT_BACKEND,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Say what a build would do, stage by stage, and why. Runs nothing."""
    specs = specs_until(until)
    settings = build_settings(
        preset,
        sources=source or (),
        benchmarks=benchmark or (),
        changes=change or (),
        force=force or (),
        trust_code=trust_code,
    )
    where = backend_named(backend)
    planned = plan_build(settings, open_store(store), where.packages, specs)
    refuse_in_vain(planned, settings)
    refuse_devices(planned, settings, where)
    for line in plan_rows(planned):
        print(line)
    known = [stage.estimated_seconds for stage in planned if stage.outcome == "RUN"]
    if known and all(seconds is not None for seconds in known):
        print(
            f"about {format_seconds(sum(s for s in known if s is not None))}, as long as they took last time"
        )
    to_run = [stage.spec for stage in planned if stage.outcome == "RUN"]
    asyncio.run(where.check(lambda: to_run))


@app.command()
def rerun(
    stages: Annotated[list[str], typer.Argument(help="The stages to run again.")],
    with_downstream: Annotated[
        bool, typer.Option("--with-downstream", help="And every stage that reads what they write.")
    ] = False,
    force: Annotated[bool, typer.Option(help="Run them even if nothing changed.")] = True,
    run: Annotated[
        str | None, typer.Option("--run", help="Take inputs and settings of this run (default: the newest).")
    ] = None,
    change: SetOption = None,
    backend: BackendOption = DEFAULT_BACKEND,
    limit: LimitOption = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Run stages again on an earlier run's inputs."""
    place = open_store(store)
    record = earlier_run(place, run, rerun_set(stages, with_downstream))
    where = backend_named(backend, limit or ())
    sys.exit(rerun_command(place, record, stages, with_downstream, change or [], force, where))


@app.command()
def show(
    artifact: Annotated[str, typer.Argument(help="A stage, STAGE@RUN, a fingerprint, or a folder.")],
    rows: Annotated[int, typer.Option(min=1, help="How many rows of each table, or of a page.")] = 3,
    dropped: Annotated[str, typer.Option(help="Page through what corpus_prep dropped for this reason.")] = "",
    page: Annotated[int, typer.Option(help="Which page of --dropped, from 1.")] = 1,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Look inside an artifact: figures, rows, samples; for sft a batch with its masked tokens dimmed."""
    found = find_artifact(open_store(store), artifact)
    if dropped:
        show_dropped(found, dropped, Console(), page, rows)
    else:
        show_artifact(found, Console(), rows)


CorpusArgument = Annotated[str, typer.Argument(help="As in show.")]


@app.command()
def redecide(
    artifact: CorpusArgument = "corpus_prep",
    change: SetOption = None,
    rows: Annotated[int, typer.Option(min=0, help="How many documents of each that change sides.")] = 3,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Try other filters, thresholds or languages on a corpus that is there. Reads its scores, no text."""
    from flows.redecide import show_redecision  # rules and their measures: other commands need none of it

    corpus = find_artifact(open_store(store), artifact)
    show_redecision(corpus, change or [], Console(), rows, _store_option(store))


def _store_option(store: str) -> str:
    """What a command that is printed for pasting needs, to speak of the same store."""
    return "" if store == DEFAULT_STORE else f" --store {shlex.quote(store)}"


@app.command()
def calibrate(
    artifact: CorpusArgument = "corpus_prep",
    quantile: Annotated[float, typer.Option(help="Share of the documents that each rule may drop.")] = 0.01,
    language: Annotated[str, typer.Option(help="Only on documents of this language, such as zh.")] = "",
    change: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Thresholds by quantile from a corpus that is there, ready to paste. Reads its scores, no text."""
    from flows.redecide import show_calibration

    corpus = find_artifact(open_store(store), artifact)
    show_calibration(corpus, change or [], Console(), quantile, language, _store_option(store))


@app.command()
def compare(
    old: Annotated[str, typer.Argument(help="A run id or its beginning.")],
    new: Annotated[str, typer.Argument(help="Another, or latest.")] = "latest",
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """What two runs were told differently, and what came of it."""
    place = open_store(store)
    print(compare_runs(place, read_record(place, old), read_record(place, new)), end="")


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="A run id, or latest.")] = "latest",
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write a run's report anew and print its path."""
    from flows.run_report import write_report

    place = open_store(store)
    print(write_report(place, read_record(place, run)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def chat(
    context: typer.Context,
    run: Annotated[
        str | None, typer.Option("--run", help="Talk to this run's model (default: the newest).")
    ] = None,
    model: Annotated[str, typer.Option(help="base, sft, dpo, int8 or int4.")] = "int8",
    compare: Annotated[str, typer.Option(help="Answer with several, such as base,dpo,int4.")] = "",
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Talk to the assistant. It also takes --prompt TEXT ..., --history, --no-tools, --no-thinking,
    --temperature T, --max-new-tokens N and --max-steps N."""
    place = open_store(store)
    command = chat_command(place, run, model, compare, context.args)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the chat has the terminal: Ctrl-C stops its answer
    sys.exit(subprocess.run(command, check=False, cwd=REPOSITORY).returncode)


@app.command(name="look")
def look_into(
    run: Annotated[
        str | None, typer.Option("--run", help="Look into this run's model (default: the newest).")
    ] = None,
    model: Annotated[str, typer.Option(help="base, sft or dpo.")] = "base",
    prompt: Annotated[str, typer.Option(help="Text whose attention maps to draw.")] = "",
    points: Annotated[int, typer.Option(help="Odd: points of each side of the landscape; 1 for none.")] = 15,
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("look.html"),
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Draw the inside of a model: its layers, its attention in a text, the loss around it."""
    from flows.look import look  # pages and charts: other commands need none of it

    extra = [*(["--prompt", prompt] if prompt else []), "--points", str(points)]
    sys.exit(look(open_store(store), run, model, extra, output))


@app.command()
def doctor(backend: BackendOption = DEFAULT_BACKEND, store: StoreOption = DEFAULT_STORE) -> None:
    """Check what a build needs, and say how to mend what is missing."""
    checks = run_checks(nearby_store(store), backend)
    for number, check in enumerate(checks, start=1):
        mark = "✓" if check.passed else "-" if check.optional else "✗"
        print(f"[{number}/{len(checks)}] {mark} {check.name}: {check.found}")
        if not check.passed and check.remedy:
            print(f"        {check.remedy}")
    sys.exit(0 if all(check.passed or check.optional for check in checks) else 1)


@app.command()
def ui(
    port: Annotated[int | None, typer.Option(help="Port (default: the first free one from 4210).")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Show the builds of this store in the Prefect UI, until Ctrl-C."""
    serve_ui(nearby_store(store), port)


@app.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Remove it, not only list it.")] = False,
    keep: Annotated[int, typer.Option(min=0, help="How many of the newest runs to keep whole.")] = 5,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """List what the store can drop: nothing that a kept run or a ref uses."""
    place = open_store(store)
    if (there := shared(place)) is not None:
        with alone_among_hosts(there) if yes else nullcontext():
            _collect(place, yes, keep, there)
        return
    with alone(place) if yes else nullcontext():
        _collect(place, yes, keep)


def _collect(place: Store, yes: bool, keep: int, there: SharedStore | None = None) -> None:
    garbage = find_garbage(place, keep)
    remote = find_remote_garbage(there, keep) if there is not None else []
    table = Table("folder", "why", "MiB", box=None)
    for item in garbage:
        table.add_row(str(item.folder.relative_to(place.root)), item.reason, f"{item.num_bytes / 2**20:,.1f}")
    for each in remote:
        table.add_row(f"s3: {each.name}", each.reason, f"{each.num_bytes / 2**20:,.1f}")
    Console().print(table)
    if yes:
        freed = (remove_remote(there, remote) if there is not None else 0) + remove(place, garbage)
        print(f"freed {freed / 2**20:,.1f} MiB")
    else:
        sizes = [item.num_bytes for item in garbage] + [item.num_bytes for item in remote]
        found = f"{len(sizes)} folders, {sum(sizes) / 2**20:,.1f} MiB"
        print(f"{found}; remove them with: glassworks gc --yes --keep {keep}")


@app.command()
def pin(
    name: Annotated[str, typer.Argument(help="The name to give.")],
    run: Annotated[str, typer.Option("--run", help="The run that gets it.")] = "latest",
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Give a run a name; gc keeps what it uses."""
    place = open_store(store)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"{name!r} is no name", hint="letters, digits, _ - and . only, such as good-one")
    record = read_record(place, run)
    ref = place.root / "refs" / name
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(record.run_id + "\n", encoding="utf-8")
    if (there := shared(place)) is not None:
        there.share_ref(name)
    print(f"{name} is {record.run_id}")


def main() -> None:
    """Entry point: our own errors become a message and an exit code."""
    try:
        app()
    except GlassworksError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
