"""Input that cannot teach anything: each has its message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_contracts import PREFERENCES
from data_contracts.tables import write_part
from stages.dpo.spec import SPEC
from stages.runtime.errors import UserError
from stages.whitebox.checkpoint import load_model, save_model
from stages.whitebox.tokenizer import copy_tokenizer
from tests.stages.dpo.conftest import pair_row


def rows_of_split(split: str) -> list[dict[str, Any]]:
    return [row for row in map(pair_row, range(40)) if row["split"] == split]


def refused(run_dpo: Callable[..., Any], folder: Path, rows: list[dict[str, Any]], **fields: Any) -> str:
    write_part(folder, PREFERENCES, rows)
    with pytest.raises(UserError) as caught:
        run_dpo(inputs={"preferences": folder}, **fields)
    return caught.value.message


@pytest.mark.parametrize("method", ["dpo", "kto", "reward"])
def test_pairs_that_all_say_the_same_twice(method: str, run_dpo: Callable[..., Any], tmp_path: Path) -> None:
    same = [{**row, "rejected": row["chosen"]} for row in rows_of_split("train")]
    message = refused(run_dpo, tmp_path, [*same, *rows_of_split("validation")], method=method)
    assert "all 20 train pairs have the same answer twice" in message


@pytest.mark.parametrize(("there", "empty"), [("train", "validation"), ("validation", "train")])
def test_an_empty_split(there: str, empty: str, run_dpo: Callable[..., Any], tmp_path: Path) -> None:
    message = refused(run_dpo, tmp_path, rows_of_split(there))
    assert f"there are no {empty} pairs: the preferences have no row in that split" in message


def test_single_answers_for_a_method_that_wants_pairs(run_dpo: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{**pair_row(number), "rejected": None} for number in range(40)]
    message = refused(run_dpo, tmp_path, rows)
    assert "all 20 train rows are answers without a partner, and dpo learns from pairs" in message
    assert "method = 'kto'" in message


def test_single_answers_of_one_side(run_dpo: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{**pair_row(number), "rejected": None, "kind": "own"} for number in range(40)]
    message = refused(run_dpo, tmp_path, rows, method="kto")
    assert "all 20 train answers are good; kto needs both, label true and false" in message


def few_singles(held_out: str) -> list[dict[str, Any]]:
    """Good and bad answers to train on; those that are held out are all `held_out`, or none for ""."""
    sides = {"good": "rejected", "bad": "chosen"}
    train = [
        {**row, ("chosen", "rejected")[n % 2]: None, "kind": "own"}
        for n, row in enumerate(rows_of_split("train"))
    ]
    rows = rows_of_split("validation") if held_out else []
    judged = [{**row, sides[held_out]: None, "kind": "own"} for row in rows]
    return [*train, *judged]


@pytest.mark.parametrize("held_out", ["good", "bad", ""])
def test_derived_pairs_judge_where_no_couple_of_single_answers_is_held_out(
    held_out: str, run_dpo: Callable[..., Any], tmp_path: Path
) -> None:
    derived = [{**row, "pair_id": f"d{row['pair_id']}"} for row in map(pair_row, range(40))]
    write_part(tmp_path, PREFERENCES, [*few_singles(held_out), *derived])
    found = run_dpo(inputs={"preferences": tmp_path}, method="kto", epochs=1.0)
    said = [event.get("message", "") for event in found.events]
    assert any("among the held-out ones: derived pairs judge instead" in message for message in said)
    assert "20 derived pairs are left out: there are answers of your own" in said
    assert found.metrics["num_validation_pairs"] == 20


def test_without_derived_pairs_a_couple_must_be_held_out(run_dpo: Callable[..., Any], tmp_path: Path) -> None:
    message = refused(run_dpo, tmp_path, few_singles("good"), method="kto")
    assert "no good and bad answer of your own among the held-out ones" in message
    assert "validation_fraction = 0.2" in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer_form": "("}, "answer_form = '(': '(' is no regular expression: missing )"),
        ({"beta": 0}, "[dpo] beta = 0: Input should be greater than 0; or Input should be 'auto'"),
        ({"epochs": 0}, "[dpo] epochs = 0: Input should be greater than 0; or Input should be 'auto'"),
        (
            {"method": "grpo", "epochs": 2},
            "epochs = 2.0 has no effect with method = 'grpo'; it is for dpo, ipo, orpo, simpo, kto, reward",
        ),
        (
            {"method": "reward", "max_kl": 0.1},
            "max_kl = 0.1 has no effect with method = 'reward'; it is for dpo, ipo, orpo, simpo, kto, grpo,",
        ),
        ({"method": "dop"}, "[dpo] method = 'dop': Input should be 'dpo', 'ipo'"),
    ],
)
def test_settings_that_cannot_be_are_told_by_their_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        SPEC.parse_config(fields)
    assert message in caught.value.message


@pytest.fixture
def own_tokenizer(base_model: Any, tmp_path: Path) -> Path:
    """The model's folder with its tokenizer, as sft writes it."""
    save_model(load_model(base_model.model), tmp_path / "model")
    copy_tokenizer(base_model.tokenizer_folder, tmp_path / "model")
    return tmp_path / "model"


def test_a_tokenizer_of_another_model(
    run_dpo: Callable[..., Any], own_tokenizer: Path, base_model: Any, tmp_path: Path
) -> None:
    from sentencepiece import sentencepiece_model_pb2

    other = shutil.copytree(base_model.tokenizer_folder, tmp_path / "other")
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((other / "tokenizer.model").read_bytes())
    first, second = proto.pieces[500], proto.pieces[501]
    (first.piece, second.piece), names = (second.piece, first.piece), (first.piece, second.piece)
    (other / "tokenizer.model").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError) as caught:
        run_dpo(inputs={"model": own_tokenizer, "tokenizer": other})
    message = caught.value.message
    assert "another tokenizer of the same size" in message
    shown = [name.replace("\u2581", " ") for name in names]
    assert f"token 500 is {shown[0]!r} there and {shown[1]!r} here" in message
    assert "glassworks rerun tokenizer --with-downstream" in message


def test_another_chat_template(run_dpo: Callable[..., Any], own_tokenizer: Path) -> None:
    run_dpo(inputs={"model": own_tokenizer}, epochs=0.2, evaluations=1)  # its own is well
    path = own_tokenizer / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    fields["chat_template"] = fields["chat_template"].replace("<|im_start|>", "[TURN]", 1)
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"model is that of another model: it differs from ours"):
        run_dpo(inputs={"model": own_tokenizer})


def test_a_model_folder_without_a_tokenizer_is_believed(
    run_dpo: Callable[..., Any], own_tokenizer: Path
) -> None:
    for path in own_tokenizer.glob("token*"):
        path.unlink()
    assert run_dpo(inputs={"model": own_tokenizer}, epochs=0.2, evaluations=1).metrics["train_pairs"] == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "orpo", "sft_term": 0.5},
            "sft_term = 0.5 has no effect with method = 'orpo'; it is for",
        ),
        ({"method": "ipo", "label_smoothing": 0.1}, "label_smoothing = 0.1 has no effect"),
        ({"simpo_gamma": 1.0}, "simpo_gamma = 1.0 has no effect with method = 'dpo'; it is for simpo"),
        (
            {"method": "grpo", "discount": 0.9},
            "discount = 0.9 has no effect with method = 'grpo'; it is",
        ),
        ({"method": "grpo", "beta": 0.04}, "beta = 0.04 has no effect with method = 'grpo'; it is for dpo"),
        ({"kl_coefficient": 0.1}, "kl_coefficient = 0.1 has no effect with method = 'dpo'; it is for grpo"),
        ({"method": "ppo", "dynamic_sampling": False}, "dynamic_sampling = False has no effect"),
        ({"robust": True}, "robust = True has no effect without label_smoothing"),
    ],
)
def test_a_setting_that_the_method_does_not_heed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SPEC.parse_config(settings)
