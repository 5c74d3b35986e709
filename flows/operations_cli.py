"""The commands for those who keep Glassworks running: `up`, `down`, `verify` and `job`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from flows.records import read_record
from flows.settings import DEFAULT_PRESET, build_settings, known_stage
from flows.stores import local_store, nearby_store, open_store
from flows.verify import verify_run

app = typer.Typer()

StoreOption = Annotated[
    str,
    typer.Option(
        "--store", envvar="GLASSWORKS_STORE", help="Folder of the artifacts, or s3://BUCKET/PREFIX."
    ),
]
DEFAULT_STORE = "store"


@app.command()
def up(
    port: Annotated[
        int | None, typer.Option(help="Port of the server (default: that of last time, else from 4200 on).")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets in whoever reaches this machine.")
    ] = "127.0.0.1",
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Start what is missing of: a Prefect server that stays, a worker, the deployments of prefect.yaml."""
    from flows.operations import Operations

    Operations(open_store(store), print).up(port, host)


@app.command()
def join(
    server: Annotated[
        str | None, typer.Argument(help="API of its Prefect server, http://HOST:4200/api; default: our own.")
    ] = None,
    at_once: Annotated[int, typer.Option("--stages", min=1, help="How many stages at once.")] = 1,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Let this host run stages of builds elsewhere that have `--backend workers`; down ends it."""
    from flows.operations import Operations

    Operations(open_store(store), print).join(server, at_once)


@app.command()
def down(store: StoreOption = DEFAULT_STORE) -> None:
    """Stop what `up` started, and the builds that run there; their checkpoints are kept."""
    from flows.operations import Operations

    Operations(nearby_store(store), print).down()


@app.command()
def verify(
    run: Annotated[str, typer.Option("--run", help="The run to look at.")] = "latest",
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Check every artifact of a run, byte for byte and against its contracts; ends with 3 if one is not."""
    place = open_store(store)
    for line in verify_run(place, read_record(place, run)):
        print(line)


@app.command()
def job(
    stage: Annotated[str, typer.Argument(help="The stage to run in a cluster.")],
    image: Annotated[str, typer.Option(help="Its image, best by digest.")],
    claim: Annotated[str, typer.Option(help="PersistentVolumeClaim of the store.")] = "glassworks-store",
    namespace: Annotated[str, typer.Option(help="Where the Job goes.")] = "default",
    gpu: Annotated[str, typer.Option(help="Resource that counts GPUs; empty for none.")] = "nvidia.com/gpu",
    preset: Annotated[str, typer.Option("--preset", "-p", help="As in build.")] = DEFAULT_PRESET,
    change: Annotated[list[str] | None, typer.Option("--set", help="As in build. Repeat it.")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Print the Kubernetes Job that makes a stage's artifact, for `kubectl apply -f -`."""
    from flows.kubernetes_job import Cluster, job_of_plan

    settings = build_settings(preset, changes=change or ())
    cluster = Cluster(image, claim, namespace, gpu=gpu)
    place = local_store(store, "a Job reads and writes a volume")
    print(json.dumps(job_of_plan(known_stage(stage), settings, place, cluster), indent=2))
