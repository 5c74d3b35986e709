"""Which stages stay on the host that asked, because what they read lies there."""

from __future__ import annotations

from pathlib import Path

from flows.launch_on_workers import _runs_here
from stages.catalog import STAGES


def test_pretraining_stays_only_where_it_goes_on_from_a_model(tmp_path: Path) -> None:
    specs = {spec.name: spec for spec in STAGES}
    here = {name for name, spec in specs.items() if _runs_here(spec, spec.parse_config({}))}
    assert here == {"corpus_prep", "tokenizer"}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    going_on = specs["pretrain"].parse_config({"continue_from": str(tmp_path)})
    assert _runs_here(specs["pretrain"], going_on)
    assert not _runs_here(specs["pretrain"])  # before the settings are known, it may
