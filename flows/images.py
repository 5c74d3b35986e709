"""Build, list and push the images. A label with the digest of its sources says if one is out of date."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from flows.docker_engine import Engine, Image
from flows.dockerfile import BASE_IMAGE, OWN, Target, copied_files, pieces, recipe, source_digest
from flows.image_locks import Pin, locked_packages, read_lock
from stages.catalog import STAGES
from stages.runtime.errors import UserError
from stages.runtime.fingerprint import REPOSITORY, canonical_json, code_digests
from stages.runtime.provenance import git_commit

SOURCE_LABEL = "glassworks.source"
CODE_LABEL = "glassworks.code"
REVISION_LABEL = "org.opencontainers.image.revision"
PACKAGE_LABEL = "glassworks.package.{}"
TORCH_LABEL = PACKAGE_LABEL.format("torch")
NAMES_VARIABLE = "GLASSWORKS_IMAGES"
DEFAULT_NAMES = "glassworks/{target}:dev"
DEFAULT_BASE_IMAGE = "python:3.11-slim"


@dataclass(frozen=True)
class BuildOptions:
    """Where an image build takes things from. The defaults need a network."""

    base_image: str = DEFAULT_BASE_IMAGE
    torch: str = "cpu"
    """cpu or cuda: which build of torch."""
    wheelhouse: Path | None = None
    """A folder of wheels; with it, nothing is fetched."""
    index_url: str = ""
    extra_index_url: str = ""
    ca_certificates: Path | None = None
    names: str = field(default_factory=lambda: os.environ.get(NAMES_VARIABLE, DEFAULT_NAMES))

    @property
    def sources(self) -> dict[str, str]:
        """Arguments that change what is in an image."""
        return {"BASE_IMAGE": self.base_image, "TORCH": self.torch}

    @property
    def pip_settings(self) -> str:
        """pip.conf for the package targets, which are not kept: an address may hold a password."""
        asked = {
            "no-index": "true" if self.wheelhouse else "",
            "find-links": "/own/wheels" if self.wheelhouse else "",
            "index-url": self.index_url,
            "extra-index-url": self.extra_index_url,
            "cert": "/own/ca-certificates.crt" if self.ca_certificates else "",
        }
        return "\n".join(["[global]", *(f"{name} = {value}" for name, value in asked.items() if value), ""])


def image_name(target: str, names: str | None = None) -> str:
    """`glassworks/dpo:dev`, or what GLASSWORKS_IMAGES says: a pattern with {target}, or a file of digests.

    Raises UserError where that is neither.
    """
    asked = names or os.environ.get(NAMES_VARIABLE) or DEFAULT_NAMES
    if "{target}" in asked:
        return asked.replace("{target}", target)
    try:
        found: dict[str, str] = json.loads(Path(asked).read_text(encoding="utf-8"))
        return found[target]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{NAMES_VARIABLE}={asked} names no image of {target}",
            hint="a pattern such as registry:5000/glassworks/{target}:dev, or the file of "
            "`glassworks images push --digests FILE`",
        ) from None


def how_to_get(name: str, stage: str) -> str:
    """The command that brings a stage's image: from its registry, or built here."""
    place = name.partition("/")[0] if "/" in name else ""
    return f"docker pull {name}" if "." in place or ":" in place else f"glassworks images build {stage}"


def lacking(images: Mapping[str, Image | None]) -> tuple[str, str]:
    """Which of these stages have no image or one of another checkout, and one command for all of them."""
    missing = [stage for stage, image in images.items() if image is None]
    stale = [stage for stage, image in images.items() if image and not holds_our_code(image, stage)]
    told = [f"missing: {', '.join(missing)}"] * bool(missing)
    told += [f"of other code or packages than this checkout: {', '.join(stale)}"] * bool(stale)
    return "; ".join(told), _how_to_get_all(missing, stale)


def _how_to_get_all(missing: list[str], stale: list[str]) -> str:
    commands = [how_to_get(image_name(stage), stage) for stage in missing]
    pulled = [command for command in commands if not command.startswith("glassworks")]
    if len(missing) == len(STAGES) and not pulled:
        return "glassworks images build"
    built = [stage for stage, command in zip(missing, commands, strict=True) if command not in pulled]
    again = sorted({*built, *stale}, key=[spec.name for spec in STAGES].index)
    return " && ".join([*pulled, *[shlex.join(["glassworks", "images", "build", *again])] * bool(again)])


def code_digest(stage: str) -> str:
    """What of an image counts in fingerprints, as one digest: code without its comments, and packages."""
    spec = next(spec for spec in STAGES if spec.name == stage)
    counts = [code_digests(f"stages.{stage}.__main__"), locked_packages(spec)]
    return hashlib.sha256(canonical_json(counts).encode()).hexdigest()[:24]


def holds_our_code(image: Image, stage: str) -> bool:
    """Whether the image of a stage holds the code of this checkout."""
    return image.labels.get(CODE_LABEL) == code_digest(stage)


def has_cpu_torch(image: Image) -> bool:
    """Whether the torch in it is the build for processors."""
    return image.labels.get(TORCH_LABEL, "").endswith("+cpu")


def labels(target: Target, options: BuildOptions) -> dict[str, str]:
    """What an image says about itself."""
    said = {
        "org.opencontainers.image.title": f"glassworks {target.name}",
        "org.opencontainers.image.version": _own_version(),
        "org.opencontainers.image.base.name": options.base_image,
        SOURCE_LABEL: source_digest(target, options.sources),
        REVISION_LABEL: git_commit() or "",
    }
    if target.name in {spec.name for spec in STAGES}:
        said[CODE_LABEL] = code_digest(target.name)
    for lock in locks_of(target, options.torch):
        said |= {PACKAGE_LABEL.format(pin.name): pin.version for pin in _named(read_lock(lock))}
    return said


def _named(lock: Mapping[str, Pin]) -> Iterator[Pin]:
    """The packages that a reader asks for; the others follow from them."""
    asked = {"torch", "pyarrow", "numpy", "duckdb", "sentencepiece", "chromadb", "prefect"}
    return (pin for pin in lock.values() if pin.name in asked)


def _own_version() -> str:
    try:
        return metadata.version("glassworks")
    except metadata.PackageNotFoundError:
        return "unknown"


def locks_of(target: Target, torch: str) -> list[str]:
    """Names of the locks that the image itself installs, without those of the images below it.

    The folder of all locks, which the flow image carries, is none of them.
    """
    copied = (Path(source) for piece in pieces(target) for source in piece.copies if "/locks/" in source)
    return [path.stem.replace("${TORCH}", torch) for path in copied if path.suffix]


@dataclass(frozen=True)
class BuiltImage:
    """What became of one image."""

    target: str
    name: str
    outcome: str
    """`up to date`, or how many layers are new."""
    num_bytes: int


def build_image(
    engine: Engine,
    target: Target,
    options: BuildOptions,
    say: Callable[[str], None],
    *,
    anew: bool,
    kit: bool,
) -> BuiltImage:
    """Build one image if its sources changed. Raises GlassworksError with the builder's last words."""
    name = image_name(target.name, options.names)
    asked = labels(target, options)
    before = engine.image(name)
    if before and not anew and before.labels.get(SOURCE_LABEL) == asked[SOURCE_LABEL]:
        return BuiltImage(target.name, name, "up to date", before.num_bytes)
    below = image_name(target.parent, options.names) if target.parent != BASE_IMAGE else options.base_image
    with context(target, below, options) as packed:
        build = engine.build_with_kit if kit else engine.build
        build(packed, name, options.sources, asked, say, anew=anew, offline=options.wheelhouse is not None)
    after = engine.image(name)
    assert after is not None
    new = [layer for layer in after.layers if before is None or layer not in before.layers]
    outcome = f"{len(new)} of {len(after.layers)} layers new" if before else "built"
    return BuiltImage(target.name, name, outcome, after.num_bytes)


def context(target: Target, below: str, options: BuildOptions) -> IO[bytes]:
    """The build context as a tar file: the recipe, the files that it copies, and what was given from outside.

    Times and owners are left out, so that the same content is the same context.
    """
    packed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    with tarfile.open(fileobj=packed, mode="w") as tar:
        _add(tar, "Dockerfile", recipe(target, below).encode())
        for file in copied_files(target, options.sources):
            _add(tar, file.relative_to(REPOSITORY).as_posix(), file.read_bytes())
        if any(OWN in piece.copies for piece in pieces(target)):
            _add(tar, f"{OWN}pip.conf", options.pip_settings.encode())
            for name, path in _given(target, options):
                _add(tar, f"{OWN}{name}", path.read_bytes())
    packed.seek(0)
    return packed


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    tar.addfile(entry, io.BytesIO(content))


def _given(target: Target, options: BuildOptions) -> Iterator[tuple[str, Path]]:
    if options.ca_certificates:
        yield "ca-certificates.crt", options.ca_certificates
    if options.wheelhouse:
        for lock in locks_of(target, options.torch):
            for path in wheels_for(read_lock(lock), options.wheelhouse):
                yield f"wheels/{path.name}", path


def wheels_for(lock: Mapping[str, Pin], wheelhouse: Path) -> list[Path]:
    """The wheels that a lock asks for. Raises UserError that names what the folder lacks."""
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(wheelhouse.glob("*.whl")):
        try:
            name, version, _, _ = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        found.setdefault((name, str(version)), []).append(path)
    missing = [f"{p.name}=={p.version}" for p in lock.values() if (p.name, p.version) not in found]
    if missing:
        raise UserError(
            f"{wheelhouse} lacks {len(missing)} wheels: {', '.join(missing[:5])}",
            hint="fill it where there is a network: pip download --no-deps --only-binary=:all: "
            f"--dest {wheelhouse} -r images/locks/LOCK.txt, for each lock",
        )
    return [path for pin in lock.values() for path in found[pin.name, pin.version]]


def images_in(engine: Engine, options: BuildOptions, names: list[Target]) -> Iterator[dict[str, Any]]:
    """One row per image: state, size, and what it adds to the image below it."""
    for target in names:
        name = image_name(target.name, options.names)
        image = engine.image(name)
        below_name = (
            options.base_image if target.parent == BASE_IMAGE else image_name(target.parent, options.names)
        )
        below = engine.image(below_name)
        fresh = image and image.labels.get(SOURCE_LABEL) == source_digest(target, options.sources)
        yield {
            "target": target.name,
            "name": name,
            "state": "missing" if image is None else "up to date" if fresh else "out of date",
            "bytes": image.num_bytes if image else None,
            "added": image.num_bytes - below.num_bytes if image and below else None,
            "id": image.digest if image else "",
        }
