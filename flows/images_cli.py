"""`glassworks images`: build, list and push the images, and lock their packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.dockerfile import Target, image_targets, with_parents
from stages.runtime.errors import UserError, did_you_mean
from stages.runtime.store import write_durably

app = typer.Typer(help="The images of the stages: build, list, push, lock.", no_args_is_help=True)

TargetArgument = Annotated[
    list[str] | None, typer.Argument(help="Images (default: all) and those below them.")
]
BaseOption = Annotated[str, typer.Option("--base-image", help="What all is built on: Python 3.11 with pip.")]
TorchOption = Annotated[Literal["cpu", "cuda"], typer.Option("--torch", help="Which build of torch.")]


@app.command()
def build(
    targets: TargetArgument = None,
    base_image: BaseOption = "python:3.11-slim",
    torch: TorchOption = "cpu",
    wheelhouse: Annotated[
        Path | None,
        typer.Option(help="Folder of wheels; then nothing is fetched.", exists=True, file_okay=False),
    ] = None,
    index_url: Annotated[str, typer.Option(help="Package index in the place of pip's default.")] = "",
    extra_index_url: Annotated[str, typer.Option(help="Package index beside it.")] = "",
    ca_certificates: Annotated[
        Path | None, typer.Option(help="Certificates that pip is to trust.", exists=True, dir_okay=False)
    ] = None,
    buildkit: Annotated[
        bool, typer.Option("--buildkit", help="Use BuildKit, by the docker command.")
    ] = False,
    anew: Annotated[bool, typer.Option("--anew", help="Build all, without the builder's cache.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the builder's output.")] = False,
) -> None:
    """Build the images whose sources changed."""
    from flows.docker_engine import Engine
    from flows.images import BuildOptions, build_image

    options = BuildOptions(base_image, torch, wheelhouse, index_url, extra_index_url, ca_certificates)
    engine = Engine()
    for target in _chosen(targets):
        say = print if verbose else (lambda _: None)
        built = build_image(engine, target, options, say, anew=anew, kit=buildkit)
        print(f"{built.name:<32} {built.outcome:<24} {built.num_bytes / 1e6:>8,.1f} MB", flush=True)


@app.command("list")
def list_images(
    targets: TargetArgument = None, base_image: BaseOption = "python:3.11-slim", torch: TorchOption = "cpu"
) -> None:
    """Which images there are, whether they are up to date, how large, and what each adds."""
    from flows.docker_engine import Engine
    from flows.images import BuildOptions, images_in

    rows = list(images_in(Engine(), BuildOptions(base_image, torch), _chosen(targets)))  # no engine: no table
    print(f"{'image':<32} {'state':<12} {'MB':>9} {'adds MB':>9}  id")
    for row in rows:
        sizes = [f"{row[key] / 1e6:,.1f}" if row[key] is not None else "" for key in ("bytes", "added")]
        print(f"{row['name']:<32} {row['state']:<12} {sizes[0]:>9} {sizes[1]:>9}  {row['id'][:19]}")


@app.command()
def push(
    registry: Annotated[str, typer.Argument(help="Where to, such as localhost:5000/glassworks.")],
    targets: TargetArgument = None,
    tag: Annotated[str, typer.Option(help="Tag in the registry.")] = "dev",
    digests: Annotated[
        Path | None,
        typer.Option(help="Write name and digest of each to this file; GLASSWORKS_IMAGES reads it."),
    ] = None,
) -> None:
    """Push images to a registry and print the digests that they can be run by."""
    from flows.docker_engine import Engine
    from flows.images import image_name

    engine = Engine()
    pushed = {}
    for target in _chosen(targets):
        pushed[target.name] = engine.push(image_name(target.name), f"{registry}/{target.name}:{tag}")
        print(pushed[target.name], flush=True)
    if digests:
        write_durably(digests, json.dumps(pushed, indent=1) + "\n")


@app.command()
def lock(
    families: Annotated[list[str] | None, typer.Argument(help="Locks to make (default: all).")] = None,
) -> None:
    """Resolve the packages of the images anew and write images/locks."""
    from flows.image_locks import FAMILIES, lock_path, write_constraints, write_lock

    for family in families or FAMILIES:
        if family not in FAMILIES:
            guess = did_you_mean(family, FAMILIES)
            raise UserError(f"there is no lock {family!r}{guess}", hint=f"locks: {', '.join(FAMILIES)}")
        print(f"{lock_path(family)}: {write_lock(family)} packages", flush=True)
    write_constraints()


def _chosen(names: list[str] | None) -> list[Target]:
    known = [target.name for target in image_targets()]
    for name in names or ():
        if name not in known:
            guess = did_you_mean(name, known)
            raise UserError(f"there is no image {name!r}{guess}", hint=f"images: {', '.join(known)}")
    return with_parents(names or [])
