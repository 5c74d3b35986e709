"""The Docker Engine, as far as we use it; what goes wrong with it gets our words.

Every method blocks: call them from a thread where an event loop is running.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound
from docker.utils import kwargs_from_env
from requests.exceptions import ConnectionError as NoConnection
from requests.exceptions import RequestException, Timeout

from stages.runtime.errors import GlassworksError, RetryableError, UserError

BY_PROCESS = "or let stages run as processes: --backend process"
TIMEOUT_SECONDS = 60
NO_NETWORK = "none"
SOCKET = Path("/var/run/docker.sock")
CONTAINER_MARK = Path("/.dockerenv")
"""The engine puts this file into every container."""


@dataclass(frozen=True)
class Image:
    """What the engine knows of an image."""

    digest: str
    """Its id, sha256 of its configuration."""
    num_bytes: int
    layers: tuple[str, ...]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class EngineFacts:
    """What of the engine matters for starting containers."""

    num_cpus: int
    has_gpus: bool
    is_rootless: bool = False
    remaps_users: bool = False


class Engine:
    """A connection. Raises RetryableError when no engine answers, UserError when we may not talk to it."""

    def __init__(self, timeout_seconds: int = TIMEOUT_SECONDS) -> None:
        with in_our_words():
            self.api = docker.APIClient(version="auto", timeout=timeout_seconds, **kwargs_from_env())

    def facts(self) -> EngineFacts:
        """Ask what it can do."""
        with in_our_words():
            return facts_of(self.api.info())

    def image(self, name: str) -> Image | None:
        """A local image; None where there is none."""
        with in_our_words():
            try:
                found = self.api.inspect_image(name)  # type: ignore[no-untyped-call]
            except ImageNotFound:
                return None
        layers = tuple((found.get("RootFS") or {}).get("Layers") or ())
        return Image(found["Id"], found["Size"], layers, found["Config"].get("Labels") or {})

    def build(
        self,
        context: IO[bytes],
        name: str,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        say: Callable[[str], None],
        *,
        anew: bool,
        offline: bool,
    ) -> None:
        """Build with the classic builder, which every engine has. GlassworksError when a step fails."""
        with in_our_words():
            told = self.api.build(
                fileobj=context,
                custom_context=True,
                tag=name,
                buildargs=dict(arguments),
                labels=dict(labels),
                rm=True,
                forcerm=True,
                nocache=anew,
                network_mode=NO_NETWORK if offline else None,
                decode=True,
            )
            _follow(told, name, say)

    def build_with_kit(
        self,
        context: IO[bytes],
        name: str,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        say: Callable[[str], None],
        *,
        anew: bool,
        offline: bool,
    ) -> None:
        """Build with BuildKit, which only the `docker` command speaks."""
        command = [_docker_command(), "build", "--tag", name, *["--no-cache"] * anew]
        command += ["--network", NO_NETWORK] if offline else []
        command += [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        command += [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
        done = subprocess.run(
            [*command, "-"],
            stdin=context,
            env=os.environ | {"DOCKER_BUILDKIT": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        for line in done.stdout.splitlines():
            say(line)
        if done.returncode != 0:
            raise build_failed(name, done.stdout.splitlines()[-15:])

    def push(self, name: str, target: str) -> str:
        """Push a local image as `target`; returns `repository@sha256:...`, by which it can be run."""
        repository, _, tag = target.rpartition(":")
        with in_our_words():
            self.api.tag(name, repository, tag)
            for line in self.api.push(repository, tag, stream=True, decode=True):
                if "error" in line:
                    raise GlassworksError(
                        f"{target} could not be pushed: {line['error']}",
                        hint="is the registry up, and are you logged in? docker login REGISTRY",
                    )
                if digest := (line.get("aux") or {}).get("Digest"):
                    return f"{repository}@{digest}"
        raise GlassworksError(f"the registry told no digest of {target}", hint="push again")


def facts_of(info: Mapping[str, Any]) -> EngineFacts:
    """Read `docker info`."""
    options = " ".join(info.get("SecurityOptions") or ())
    devices = [str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or ()]
    return EngineFacts(
        num_cpus=int(info["NCPU"]),
        has_gpus="nvidia" in (info.get("Runtimes") or {}) or any("nvidia.com/gpu" in d for d in devices),
        is_rootless="name=rootless" in options,
        remaps_users="name=userns" in options,
    )


def _follow(told: Iterator[Mapping[str, Any]], name: str, say: Callable[[str], None]) -> None:
    lines: list[str] = []
    for part in told:
        if text := str(part.get("stream", "")).rstrip():
            lines.append(text)
            say(text)
        if "error" in part:
            raise build_failed(name, [*lines[-15:], str(part["error"])])


def build_failed(name: str, last_lines: list[str]) -> GlassworksError:
    """The error of a build step, with the hint that fits what the builder said last."""
    text = "\n".join(last_lines)
    hint = "the builder's last words are above"
    if "No matching distribution" in text or "from versions: none" in text:
        hint = "the index does not have it: pass --index-url, --extra-index-url or --wheelhouse"
    elif "CERTIFICATE_VERIFY_FAILED" in text:
        hint = "pass --ca-certificates FILE with the certificates of your network"
    elif "DO NOT MATCH THE HASHES" in text:
        hint = "the index offers another file of that version: glassworks images lock makes the locks anew"
    elif "manifest unknown" in text or "pull access denied" in text or "Client.Timeout" in text:
        hint = "the base image cannot be had: pass --base-image with one that you have"
    return GlassworksError(f"{name} could not be built\n{text}", hint=hint)


def _docker_command() -> str:
    found = shutil.which("docker")
    if found is None:
        raise UserError("there is no `docker` command, which BuildKit needs", hint="leave --buildkit out")
    return found


def engine_address() -> str:
    """Where the engine is asked for: what DOCKER_HOST says, else the local socket."""
    return os.environ.get("DOCKER_HOST") or f"unix://{SOCKET}"


@contextmanager
def in_our_words() -> Iterator[None]:
    """Turn the SDK's errors into ours."""
    try:
        yield
    except GlassworksError:
        raise
    except APIError as error:
        raise GlassworksError(
            f"the Docker Engine refused: {error.explanation or error}", hint=BY_PROCESS
        ) from None
    except (DockerException, RequestException) as error:
        raise engine_away(error) from None


def engine_away(error: Exception, in_container: bool | None = None) -> GlassworksError:
    """No answer from the engine: it is not there, it has gone, or we may not ask."""
    where = engine_address()
    inside = CONTAINER_MARK.exists() if in_container is None else in_container
    if "Permission denied" in str(error):
        group = "give this container the group of the socket: group_add, the number is that of "
        group += f"`stat --format %g {SOCKET}` on the host"
        join = f"sudo usermod --append --groups docker $USER, log in again; {BY_PROCESS}"
        return UserError(f"you may not use the Docker Engine at {where}", hint=group if inside else join)
    if inside and not SOCKET.exists() and "DOCKER_HOST" not in os.environ:
        return UserError(
            f"no Docker Engine can be reached from this container: it has no {SOCKET}",
            hint=f"mount it: `volumes` of the work pool, {SOCKET}:{SOCKET}",
        )
    if isinstance(error, Timeout) and not isinstance(error, NoConnection):
        return RetryableError(f"the Docker Engine at {where} does not answer in time", hint="try again")
    return RetryableError(
        f"no Docker Engine answers at {where}",
        hint=f"start it (sudo systemctl start docker) or set DOCKER_HOST; {BY_PROCESS}",
    )
