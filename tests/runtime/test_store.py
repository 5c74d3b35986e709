"""A hit counts only if every byte is there; reasons are found without running anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_contracts.manifest import Hardware, KeyParts, Manifest, PartEntry, Provenance
from stages.runtime import store as stores
from stages.runtime.errors import UserError
from stages.runtime.fingerprint import fingerprint
from stages.runtime.lock import exclusive, holder, is_held
from stages.runtime.store import (
    Artifact,
    Store,
    commit,
    list_files,
    part_digest,
    write_durably,
    write_run,
)


def make_key(depth: int = 4, code: str = "c0", numpy: str = "2.4.0") -> KeyParts:
    return KeyParts(
        stage="fake",
        version=1,
        config={"depth": depth},
        code={"stages/fake/run.py": code},
        inputs={},
        packages={"numpy": numpy},
    )


def build(
    store: Store, key: KeyParts, text: str = "data", started: str = "2026-01-01T00:00:00+00:00"
) -> Artifact:
    staged = store.work_dir("fake", fingerprint(key)) / "out"
    (staged / "numbers").mkdir(parents=True)
    (staged / "numbers" / "numbers.txt").write_text(text)
    (staged / "events.jsonl").write_text(f"began {started}")
    files = list_files(staged)
    hardware = Hardware(cpu="test", num_cpus=1, memory_bytes=1, platform="test")
    provenance = Provenance(
        started_at=started,
        seconds=1.0,
        peak_memory_bytes=1,
        git_commit=None,
        packages={},
        python="3",
        hardware=hardware,
    )
    manifest = Manifest(
        stage="fake",
        fingerprint=fingerprint(key),
        key=key,
        config=key.config,
        inputs={},
        parts={"numbers": PartEntry(contract="numbers@1", digest=part_digest(files, "numbers"))},
        files=tuple(files),
        provenance=provenance,
    )
    folder = store.artifact_dir("fake", fingerprint(key))
    commit(staged, folder, manifest)
    return Artifact(folder, manifest)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_whole_artifact_is_found(store: Store) -> None:
    built = build(store, make_key())
    found = store.find("fake", fingerprint(make_key()))
    assert found == built
    assert store.why_not(make_key()) == []


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda p: p.unlink(), "numbers/numbers.txt is missing"),
        (lambda p: p.write_text("dat"), "numbers/numbers.txt has 3 bytes, its manifest says 4"),
        (
            lambda p: p.write_text("dbta"),
            "numbers/numbers.txt is damaged: its sha256 differs from its manifest's",
        ),
    ],
)
def test_a_damaged_artifact_is_no_hit(store: Store, harm: object, reason: str) -> None:
    built = build(store, make_key())
    harm(built.folder / "numbers" / "numbers.txt")  # type: ignore[operator]
    assert store.find("fake", fingerprint(make_key())) is None
    assert store.why_not(make_key()) == [reason]


def test_a_folder_without_a_manifest_is_no_artifact(store: Store) -> None:
    built = build(store, make_key())
    (built.folder / "manifest.json").unlink()
    assert store.find("fake", fingerprint(make_key())) is None
    assert store.why_not(make_key()) == ["its manifest is missing or unreadable"]


def test_reasons_come_from_the_nearest_artifact(store: Store) -> None:
    assert store.why_not(make_key()) == ["never built in this store"]
    build(store, make_key(depth=2, code="c1"))
    build(store, make_key(depth=4))
    assert store.why_not(make_key(depth=6)) == ["depth: 4 -> 6"]


def test_trusted_code_is_written_down(store: Store) -> None:
    old = build(store, make_key(code="c0"))
    assert store.find_trusting_code(make_key(depth=5, code="c1")) is None
    trusting = store.find_trusting_code(make_key(code="c1"))
    assert trusting == old
    adopted = store.adopt(old, make_key(code="c1"))
    assert adopted.manifest.trusted_code == {"stages/fake/run.py": ["c0", "c1"]}
    assert store.find("fake", fingerprint(make_key(code="c1"))) == adopted
    assert store.find("fake", fingerprint(make_key(code="c0"))) == old


def test_packages_are_trusted_like_code(store: Store) -> None:
    old = build(store, make_key(numpy="2.4.0"))
    wanted = make_key(code="c1", numpy="2.5.0")
    assert store.find_trusting_code(wanted) == old
    trusted = store.adopt(old, wanted).manifest.trusted_code
    assert trusted == {"package numpy": ["2.4.0", "2.5.0"], "stages/fake/run.py": ["c0", "c1"]}


def test_a_manifest_from_before_packages_counted_is_no_hit_and_tells_why(store: Store) -> None:
    folder = build(store, make_key()).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["manifest_version"] = 1
    del manifest["key"]["packages"]
    old = folder.rename(folder.with_name("0123"))
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert store.why_not(make_key()) == ["package numpy: (absent) -> 2.4.0"]
    adopted = store.adopt(store.find_trusting_code(make_key()), make_key())
    assert adopted.manifest.manifest_version == 2


LATER = "2026-01-02T00:00:00+00:00"


def test_the_same_made_again_leaves_readers_their_files(store: Store) -> None:
    first = build(store, make_key())
    inodes = {path: path.stat().st_ino for path in (first.folder, *first.folder.rglob("numbers*"))}
    again = build(store, make_key(), started=LATER)
    assert {path: path.stat().st_ino for path in inodes} == inodes
    assert (first.folder / "events.jsonl").read_text() == f"began {LATER}"
    assert store.find("fake", fingerprint(make_key())) == again
    assert not any(store.work_dir("fake", fingerprint(make_key())).iterdir())


@pytest.mark.parametrize("writes", range(4))
def test_telling_of_a_new_run_can_be_cut_short_anywhere(
    store: Store, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    build(store, make_key())
    left = iter(range(writes))

    def write_some(path: Path, text: str) -> None:
        if next(left, None) is None:
            raise InterruptedError
        write_durably(path, text)

    monkeypatch.setattr(stores, "write_durably", write_some)
    with pytest.raises(InterruptedError):
        build(store, make_key(), started=LATER)
    found = store.find("fake", fingerprint(make_key()))
    assert found is not None and (found.part("numbers") / "numbers.txt").read_text() == "data"
    monkeypatch.undo()
    if writes:  # the staged folder has its manifest: whoever finds it moves it again
        staged = store.work_dir("fake", fingerprint(make_key())) / "out"
        stores.move_into_place(staged, found.folder, aside=staged.parent)
        told = store.find("fake", fingerprint(make_key()))
        assert told is not None and told.manifest.provenance.started_at == LATER
        assert (told.folder / "events.jsonl").read_text() == f"began {LATER}"
        assert not staged.exists()


def test_other_bytes_replace_what_was_there(store: Store) -> None:
    build(store, make_key())
    build(store, make_key(), text="other", started=LATER)
    found = store.find("fake", fingerprint(make_key()))
    assert found is not None and (found.part("numbers") / "numbers.txt").read_text() == "other"


def test_adopting_leaves_another_builds_checkpoints_alone(store: Store) -> None:
    old, key = build(store, make_key(code="c0")), make_key(code="c1")
    checkpoint = store.work_dir("fake", fingerprint(key)) / "checkpoints" / "done"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("7")
    store.adopt(old, key)
    assert checkpoint.read_text() == "7"


def test_parts_are_resolved_to_their_artifact(store: Store) -> None:
    built = build(store, make_key())
    assert store.resolve_part(built.part("numbers")) == (built, "numbers")
    with pytest.raises(UserError, match=r"no part 'number' \(did you mean 'numbers'"):
        store.resolve_part(built.part("number"))
    with pytest.raises(UserError, match="is no part of an artifact"):
        store.resolve_part(store.root)


def test_the_digest_of_a_part_does_not_depend_on_where_it_lies(store: Store, tmp_path: Path) -> None:
    first = build(store, make_key(depth=1))
    second = build(store, make_key(depth=2))
    assert first.manifest.parts["numbers"].digest == second.manifest.parts["numbers"].digest


def test_files_of_an_artifact_can_be_read_by_others(store: Store) -> None:
    built = build(store, make_key())
    assert (built.folder / "numbers" / "numbers.txt").stat().st_mode & 0o777 == 0o644


def test_runs_are_recorded(store: Store) -> None:
    path = write_run(store, "r1", {"artifacts": {"fake": "abc"}})
    assert json.loads(path.read_text()) == {"artifacts": {"fake": "abc"}}


def test_a_lock_is_held_only_while_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    assert not is_held(path)
    with exclusive(path, print, lambda: False):
        assert is_held(path)
        assert "process" in holder(path)
        with pytest.raises(InterruptedError), exclusive(path, print, lambda: True):
            pass
    assert not is_held(path)
