"""Every mistake in what a build is told is found before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.settings import build_settings, load_preset, parse_change, preset_names
from stages.catalog import STAGES
from stages.runtime.errors import UserError


def test_every_preset_is_valid() -> None:
    assert preset_names() == ["gpu", "laptop", "tiny"]
    for name in preset_names():
        assert set(build_settings(name).configs) == {spec.name for spec in STAGES}


def test_the_sources_of_the_tiny_preset_exist() -> None:
    for source in load_preset("tiny")["corpus_prep"]["sources"]:
        path = Path(source)
        assert list(path.parent.glob(path.name)), source


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("pretrain.depth=6", ("pretrain", "depth", 6)),
        ("sft.learning_rate=1e-3", ("sft", "learning_rate", 0.001)),
        ("pretrain.qk_norm=false", ("pretrain", "qk_norm", False)),
        ("pretrain.compile=off", ("pretrain", "compile", "off")),
        ('corpus_prep.packages=["numpy"]', ("corpus_prep", "packages", ["numpy"])),
        ("corpus_prep.filters=gopher", ("corpus_prep", "filters", ("gopher",))),
    ],
)
def test_changes_are_parsed(change: str, expected: tuple[str, str, object]) -> None:
    assert parse_change(change) == expected


def test_changes_win_over_the_preset() -> None:
    settings = build_settings("tiny", changes=["pretrain.depth=3"])
    assert settings.configs["pretrain"].depth == 3  # type: ignore[attr-defined]


def test_sources_become_absolute(scratch: Path) -> None:
    settings = build_settings("tiny", sources=["own/*.txt"])
    assert settings.configs["corpus_prep"].sources == (str(scratch / "own" / "*.txt"),)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["sources", "earlier_corpora", "word_lists", "url_lists", "good_text"])
def test_every_file_in_a_change_is_the_users(scratch: Path, name: str) -> None:
    settings = build_settings("tiny", changes=[f"corpus_prep.{name}=['own/a.txt', '/b.txt']"])
    assert getattr(settings.configs["corpus_prep"], name) == (str(scratch / "own" / "a.txt"), "/b.txt")


@pytest.mark.parametrize(
    "setting",
    ["pretrain.continue_from", "pretrain.shape_from", "tokenizer.extend", "tokenizer.import_from"],
)
def test_a_single_file_or_folder_is_the_users_too(scratch: Path, setting: str) -> None:
    stage, _, name = setting.partition(".")
    for given, expected in (("own/m", str(scratch / "own" / "m")), ("/m", "/m"), ("", "")):
        settings = build_settings("tiny", changes=[f"{setting}={given}"])
        assert getattr(settings.configs[stage], name) == expected
    (scratch / "mine").mkdir()
    (scratch / "mine" / "own.toml").write_text(f'[{stage}]\n{name} = "m"\n')
    assert load_preset(str(scratch / "mine" / "own.toml"))[stage][name] == str(scratch / "mine" / "m")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "labtop"}, r"no preset 'labtop' \(did you mean 'laptop'\?\)"),
        (
            {"preset": "tiny", "changes": ["pretrian.depth=6"]},
            r"no stage 'pretrian' \(did you mean 'pretrain'",
        ),
        ({"preset": "tiny", "changes": ["pretrain.dept=6"]}, r"no setting 'dept' \(did you mean 'depth'\?\)"),
        ({"preset": "tiny", "changes": ["pretrain.depth"]}, r"is not STAGE\.FIELD=VALUE"),
        ({"preset": "tiny", "changes": ["pretrain.depth=deep"]}, r"\[pretrain\] depth = 'deep'"),
        ({"preset": "tiny", "force": ["sftt"]}, r"no stage 'sftt'"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_settings(**arguments)  # type: ignore[arg-type]


def test_an_own_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[corpus_prep]\nsources = ["data/a.txt"]\n')
    settings = build_settings(str(path))
    assert settings.configs["corpus_prep"].sources == (str(tmp_path / "data" / "a.txt"),)  # type: ignore[attr-defined]
    path.write_text("[corpus_prep\n")
    with pytest.raises(UserError, match="is no TOML"):
        build_settings(str(path))


@pytest.mark.parametrize("preset", ["tiny", "laptop", "gpu"])
def test_all_models_answer_the_same_prompts(preset: str) -> None:
    configs = build_settings(preset).configs
    sampled = [configs[name].model_dump() for name in ("pretrain", "sft", "dpo", "quantize")]
    assert len({config["sample_prompts"] for config in sampled}) == 1
    assert len({config["chat_prompts"] for config in sampled[1:]}) == 1
    assert len({config["sample_tokens"] for config in sampled[1:]}) == 1
