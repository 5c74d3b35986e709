"""Where the engine finds what a flow in a container sees: pure functions, no engine is needed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import NotFound

import flows.host_paths as host_paths_module
from flows.docker_engine import Image
from flows.host_paths import (
    host_roots,
    mounted_from_host,
    on_host,
    own_container,
    own_revision,
    parse_host_roots,
)
from flows.images import REVISION_LABEL
from stages.runtime.errors import UserError

ROOTS = {Path("/store"): Path("/srv/llm/store"), Path("/store/runs"): Path("/mnt/runs")}
ID = "5f" * 32
IN_A_CONTAINER = f"""\
612 595 0:53 / / ro,relatime master:1 - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/ABC
620 612 254:0 /srv/llm/store /store rw,relatime - ext4 /dev/vda rw
631 612 254:0 /var/lib/docker/containers/{ID}/resolv.conf /etc/resolv.conf ro,relatime - ext4 /dev/vda rw
632 612 254:0 /var/lib/docker/containers/{ID}/hostname /etc/hostname ro,relatime - ext4 /dev/vda rw
"""
ON_A_HOST_WITH_CONTAINERS = f"""\
25 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
90 25 0:60 / /var/lib/docker/containers/{ID}/mounts/shm rw,nosuid - tmpfs shm rw,size=65536k
"""


def test_on_the_host_paths_are_what_they_are() -> None:
    assert on_host(Path("/srv/x"), None) == Path("/srv/x")


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ("/store", "/srv/llm/store"),
        ("/store/work/sft/aa", "/srv/llm/store/work/sft/aa"),
        ("/store/runs/x.json", "/mnt/runs/x.json"),  # the innermost mount is the one that is seen
    ],
)
def test_in_a_container_they_are_those_of_its_mounts(inside: str, outside: str) -> None:
    assert on_host(Path(inside), ROOTS) == Path(outside)


def test_what_is_only_in_our_container_is_refused() -> None:
    with pytest.raises(UserError, match=r"/storehouse/x lies in the flow's own container") as caught:
        on_host(Path("/storehouse/x"), ROOTS)
    assert "/store, /store/runs" in caught.value.message
    assert "volumes" in caught.value.hint


def test_the_variable_names_more_than_one_folder() -> None:
    found = parse_host_roots("/store=/srv/llm/store, /data=/srv/data")
    assert found == {Path("/store"): Path("/srv/llm/store"), Path("/data"): Path("/srv/data")}


@pytest.mark.parametrize("text", ["/store", "store=/srv", "/store=srv", "/store=/srv,"])
def test_a_wrong_variable_is_told_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match="is not two full paths") as caught:
        parse_host_roots(text)
    assert "GLASSWORKS_HOST_ROOT=/store=/srv/llm/store" in caught.value.hint


def test_a_container_knows_itself_by_what_the_engine_mounts() -> None:
    assert own_container(IN_A_CONTAINER) == ID
    assert own_container(ON_A_HOST_WITH_CONTAINERS) is None


def test_mounts_of_the_engine_are_read() -> None:
    container = {
        "Mounts": [
            {"Type": "bind", "Source": "/srv/llm/store", "Destination": "/store"},
            {"Type": "volume", "Source": "/var/lib/docker/volumes/d/_data", "Destination": "/data"},
            {"Type": "tmpfs", "Source": "", "Destination": "/scratch"},
        ]
    }
    expected = {"/store": "/srv/llm/store", "/data": "/var/lib/docker/volumes/d/_data"}
    assert mounted_from_host(container) == {Path(a): Path(b) for a, b in expected.items()}
    assert mounted_from_host({"Mounts": None}) == {}


def engine(found: Any) -> Any:
    """An engine that knows one container, or none."""

    def inspect(container: str) -> Any:
        if container != found:
            raise NotFound("no such container")
        mount = {"Type": "bind", "Source": "/srv/store", "Destination": "/store"}
        return {"Mounts": [mount], "Image": "sha256:1"}

    flow = Image("sha256:1", 1, (), {REVISION_LABEL: "c0ffee"})
    return SimpleNamespace(api=SimpleNamespace(inspect_container=inspect), image={"sha256:1": flow}.get)


def test_the_variable_comes_first_then_the_engine_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    monkeypatch.setattr(host_paths_module, "MOUNT_TABLE", table)
    assert host_roots(engine(None), {}) is None  # no such file: no Linux
    table.write_text(ON_A_HOST_WITH_CONTAINERS)
    assert host_roots(engine(None), {}) is None
    table.write_text(IN_A_CONTAINER)
    assert host_roots(engine(ID), {}) == {Path("/store"): Path("/srv/store")}
    said = {"GLASSWORKS_HOST_ROOT": "/store=/srv/b"}
    assert host_roots(engine(ID), said) == {Path("/store"): Path("/srv/b")}
    with pytest.raises(UserError, match="another Docker Engine") as caught:
        host_roots(engine(None), {})
    assert "GLASSWORKS_HOST_ROOT" in caught.value.hint


def test_a_flow_in_a_container_knows_the_commit_that_it_was_built_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    monkeypatch.setattr(host_paths_module, "MOUNT_TABLE", table)
    assert own_revision(engine(ID)) == ""
    table.write_text(IN_A_CONTAINER)
    assert own_revision(engine(ID)) == "c0ffee"
    assert own_revision(engine(None)) == ""
