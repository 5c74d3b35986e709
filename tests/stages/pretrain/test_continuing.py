"""Going on from an earlier model: the same loss at step 0, a grown vocabulary, and what does not fit."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from stages.pretrain.continuing import continued_model, continued_shape
from stages.pretrain.recipe import make_recipe
from stages.pretrain.run import run
from stages.pretrain.spec import SPEC, PretrainConfig
from stages.runtime.errors import UserError
from stages.runtime.session import StageSession
from stages.tokenizer.alphabet import Coverage
from stages.tokenizer.extension import extend_model
from stages.tokenizer.importing import import_tokenizer
from stages.whitebox.batches import TokenShards
from stages.whitebox.checkpoint import load_model, save_model
from stages.whitebox.config import ModelConfig
from stages.whitebox.evaluation import evaluate_bits_per_byte
from stages.whitebox.losses import cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import TOKENIZER_FILES, Tokenizer
from tests.stages.pretrain.conftest import sentence, write_tokenizer, write_tokens

Events = Callable[[str], list[dict[str, Any]]]
HAN = "母鸡在谷仓里睡觉。山羊在池塘边等待。\n" * 40


def changed(config: PretrainConfig, **changes: object) -> PretrainConfig:
    return PretrainConfig(**{**config.model_dump(), **changes})


@pytest.fixture(scope="module")
def earlier(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained a little on the sentences, in the shape of an artifact."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_folder(inputs["tokenizer"])
    model = CausalLM(ModelConfig.from_depth(1, tokenizer.vocab_size, max_position_embeddings=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(60):
        ids = tokenizer.encode("".join(sentence(number) for number in range(step, step + 8)))[:64]
        ids_BxT = torch.tensor([[tokenizer.bos_id, *ids]])
        loss, count = cross_entropy_sum(
            model.hidden_states(ids_BxT[:, :-1]), model.output_weight(), ids_BxT[:, 1:]
        )
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("earlier") / "artifact"
    save_model(model, folder / "model")
    for name in TOKENIZER_FILES:
        if (inputs["tokenizer"] / name).is_file():
            shutil.copy(inputs["tokenizer"] / name, folder / "model" / name)
    return folder


@pytest.fixture(scope="module")
def grown(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same sentences and some Chinese, in a vocabulary that grew by 20 pieces."""
    folder = tmp_path_factory.mktemp("grown")
    base = Tokenizer.from_folder(inputs["tokenizer"])
    tokenizer = Tokenizer(extend_model(base.model_proto, [HAN], 340, ("Han",), Coverage(1.0)))
    write_tokenizer(tokenizer, folder / "tokenizer")
    write_tokens(tokenizer, folder / "tokens", [sentence(number) for number in range(240)] + [HAN] * 16)
    return {"tokenizer": folder / "tokenizer", "tokens": folder / "tokens"}


def step_0(read_events: Events) -> dict[str, float]:
    first = read_events("metrics")[0]
    assert first["step"] == 0
    return first["values"]


def test_it_begins_with_the_loss_of_the_earlier_model_and_learns_on(
    config: PretrainConfig,
    inputs: dict[str, Path],
    earlier: Path,
    session: StageSession,
    read_events: Events,
    tmp_path: Path,
) -> None:
    config = changed(config, continue_from=str(earlier), validation_tokens=10**6)
    run(config, inputs, {"model": tmp_path / "out"}, session)
    known = evaluate_bits_per_byte(
        load_model(earlier / "model"), TokenShards(inputs["tokens"], "validation"), context_tokens=32
    )
    before = step_0(read_events)
    assert before["validation_loss"] == pytest.approx(known.loss, rel=1e-5)
    losses = [event["values"]["train_loss"] for event in read_events("metrics")[1:]]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert load_model(tmp_path / "out").config.max_position_embeddings == 64  # the earlier model's shape


def english_loss(model: CausalLM, inputs: dict[str, Path]) -> float:
    """The loss on base-language text whose ids are the same in both vocabularies."""
    return evaluate_bits_per_byte(model, TokenShards(inputs["tokens"], "validation"), context_tokens=32).loss


def test_a_grown_vocabulary_leaves_the_loss_of_the_base_language_where_it_was(
    config: PretrainConfig,
    inputs: dict[str, Path],
    grown: dict[str, Path],
    earlier: Path,
    session: StageSession,
    tmp_path: Path,
) -> None:
    config = changed(config, continue_from=str(earlier), train_tokens=12_000, global_batch_tokens=512)
    tokenizer = Tokenizer.from_folder(grown["tokenizer"])
    shape = continued_shape(config, tokenizer)
    assert shape.vocab_size == 340
    first = continued_model(config, shape, tokenizer, session)
    before, at_start = english_loss(load_model(earlier / "model"), inputs), english_loss(first, inputs)
    # Each new row is a mean of old ones, so its e^logit is at most the mean of theirs (Jensen): a new token
    # takes at most the share that its spelling has on average, and bytes of Chinese have hardly any.
    assert 0 <= at_start - before < math.log(1 + 20 / 320)
    assert at_start - before < 0.02

    run(config, grown, {"model": tmp_path / "out"}, session)
    after = english_loss(load_model(tmp_path / "out"), inputs)
    assert after < before + 0.05
    chinese_ids = tokenizer.encode(HAN[:19])
    assert max(chinese_ids) >= 320  # it has new pieces to learn


def test_untied_output_rows_grow_too_and_padding_rows_go(
    config: PretrainConfig,
    inputs: dict[str, Path],
    grown: dict[str, Path],
    session: StageSession,
    tmp_path: Path,
) -> None:
    torch.manual_seed(1)
    padded = CausalLM(
        ModelConfig.from_depth(1, 384, max_position_embeddings=32, tie_word_embeddings=False)
    )  # 320 tokens, rows rounded up as many models have them
    save_model(padded, tmp_path)
    shutil.copy(inputs["tokenizer"] / "tokenizer.model", tmp_path)
    config = changed(config, continue_from=str(tmp_path))
    tokenizer = Tokenizer.from_folder(grown["tokenizer"])
    model = continued_model(config, continued_shape(config, tokenizer), tokenizer, session)
    for old, new in (
        (padded.model.embed_tokens.weight, model.model.embed_tokens.weight),
        (padded.lm_head.weight, model.lm_head.weight),
    ):
        assert new.shape[0] == 340
        assert torch.equal(new[:320], old[:320])
        spelled = Tokenizer.from_folder(tmp_path).encode(tokenizer.piece(339))
        torch.testing.assert_close(new[339], old[spelled].mean(dim=0))


def test_a_model_that_goes_on_takes_a_smaller_peak_and_warms_up(
    config: PretrainConfig, earlier: Path
) -> None:
    shape = ModelConfig.from_depth(1, 320)
    fresh = make_recipe(config, shape, 2**33)
    going_on = make_recipe(changed(config, continue_from=str(earlier)), shape, 2**33)
    assert going_on.learning_rate == fresh.learning_rate / 4
    assert fresh.matrix_learning_rate is not None and going_on.matrix_learning_rate is not None
    assert going_on.matrix_learning_rate == fresh.matrix_learning_rate / 4
    assert going_on.warmup_steps == fresh.warmup_steps


def test_a_peak_that_is_set_by_hand_is_taken_as_it_is(config: PretrainConfig, earlier: Path) -> None:
    def peaks(**fields: object) -> tuple[float, float | None]:
        going_on = changed(config, **{"continue_from": str(earlier), **fields})
        recipe = make_recipe(going_on, ModelConfig.from_depth(1, 320), 2**33)
        return recipe.learning_rate, recipe.matrix_learning_rate

    automatic, of_muon = peaks()
    assert peaks(learning_rate=0.003) == (0.003, of_muon)
    assert peaks(matrix_learning_rate=0.02) == (automatic, 0.02)  # what a fresh model would have, by name
    assert peaks(learning_rate=0.003, optimizer="adamw") == (0.003, None)
    assert peaks(learning_rate=0.003, continue_learning_rate_fraction=0.5) == (0.003, 0.01)
    both: dict[str, object] = {"learning_rate": 0.003, "matrix_learning_rate": 0.01}
    for by_hand in (both, {"learning_rate": 0.003, "optimizer": "adamw"}):
        with pytest.raises(ValueError, match=r"continue_learning_rate_fraction = 0\.5 has no effect where"):
            peaks(**by_hand, continue_learning_rate_fraction=0.5)


def test_the_weights_and_not_their_place_are_in_the_key(
    config: PretrainConfig, earlier: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(earlier / "model", moved)
    here, there = (changed(config, continue_from=str(path)) for path in (earlier, moved))
    assert SPEC.external_inputs is not None
    assert SPEC.key_config(here) == SPEC.key_config(there) == SPEC.key_config(config)
    assert SPEC.external_inputs(here) == SPEC.external_inputs(there) != {}
    assert SPEC.external_inputs(config) == {}
    raw = bytearray((moved / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (moved / "model.safetensors").write_bytes(raw)
    assert SPEC.external_inputs(here) != SPEC.external_inputs(there)


def test_the_shape_in_a_file_is_in_the_key_and_not_its_place(config: PretrainConfig, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
    assert SPEC.external_inputs is not None and SPEC.outside is not None
    here, there = (changed(config, shape_from=str(tmp_path / name)) for name in ("a", "b/config.json"))
    assert SPEC.key_config(here) == SPEC.key_config(there) == SPEC.key_config(config)
    assert SPEC.external_inputs(here) == SPEC.external_inputs(there) != {}
    assert SPEC.outside(there).same_place == (tmp_path / "b" / "config.json",)
    (tmp_path / "b" / "config.json").write_text('{"model_type": "qwen2"}')
    assert SPEC.external_inputs(here) != SPEC.external_inputs(there)


def test_a_shape_that_cannot_be_taken_is_named(
    config: PretrainConfig, inputs: dict[str, Path], session: StageSession, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"\[pretrain\] shape_from: .*none is no file"):
        SPEC.external_inputs(changed(config, shape_from=str(tmp_path / "none")))  # type: ignore[misc]
    path = tmp_path / "config.json"
    for content, problem in (
        ("{", "Expecting property name"),
        ("[]", "is no JSON object"),
        ('{"model_type": "gpt2"}', "has model_type 'gpt2', expected one of"),
        ('{"model_type": "llama"}', "config.json lacks vocab_size"),
    ):
        path.write_text(content)
        error = refused(changed(config, shape_from=str(path)), inputs, session, tmp_path)
        assert str(path) in error.message and problem in error.message


def refused(
    config: PretrainConfig, inputs: dict[str, Path], session: StageSession, folder: Path
) -> UserError:
    with pytest.raises(UserError) as caught:
        run(config, inputs, {"model": folder / "out"}, session)
    return caught.value


def test_what_cannot_be_gone_on_from_is_named(
    config: PretrainConfig, inputs: dict[str, Path], earlier: Path, session: StageSession, tmp_path: Path
) -> None:
    error = refused(changed(config, continue_from=str(tmp_path / "none")), inputs, session, tmp_path)
    assert "is no folder" in error.message

    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(earlier / "model" / "config.json", pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"")
    error = refused(changed(config, continue_from=str(pickled)), inputs, session, tmp_path)
    assert "pytorch_model.bin, which is a pickle" in error.message

    longer = changed(config, continue_from=str(earlier), context_tokens=128)
    error = refused(longer, inputs, session, tmp_path)
    assert "context_tokens is 128, the model" in error.message
    assert "set context_tokens = 64" in error.message

    other = tmp_path / "other"
    shutil.copytree(earlier / "model", other)
    fields = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**fields, "intermediate_size": 512}))
    error = refused(changed(config, continue_from=str(other)), inputs, session, tmp_path)
    assert "model.layers.0.mlp.gate_proj.weight has shape" in error.message


def test_another_vocabulary_is_refused_with_the_first_token_that_differs(
    config: PretrainConfig,
    inputs: dict[str, Path],
    grown: dict[str, Path],
    earlier: Path,
    session: StageSession,
    tmp_path: Path,
) -> None:
    larger = tmp_path / "larger"
    shutil.copytree(earlier / "model", larger)
    shutil.copy(grown["tokenizer"] / "tokenizer.model", larger)
    fields = json.loads((larger / "config.json").read_text())
    (larger / "config.json").write_text(json.dumps({**fields, "vocab_size": 340}))
    error = refused(changed(config, continue_from=str(larger)), inputs, session, tmp_path)
    assert "token 320 is " in error.message
    assert "and none in the tokens to train on" in error.message

    (larger / "tokenizer.model").unlink()
    (larger / "tokenizer.json").unlink()
    error = refused(changed(config, continue_from=str(larger)), inputs, session, tmp_path)
    assert "340 tokens and no tokenizer, ours has 320" in error.message


def test_a_published_folder_with_padding_rows_grows_by_the_markers_of_an_import(
    config: PretrainConfig, session: StageSession, tmp_path: Path
) -> None:
    """As Qwen's: tokenizer.json alone says what the tokens are, and the embedding has rows to spare."""
    transformers = pytest.importorskip("transformers")
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    library.train_from_iterator([sentence(number) for number in range(40)], trainer)
    library.save(str(tmp_path / "tokenizer.json"))
    torch.manual_seed(2)
    peer = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True,
        )
    )  # fmt: skip
    peer.save_pretrained(tmp_path)
    imported = import_tokenizer({"tokenizer.json": tmp_path / "tokenizer.json"}).tokenizer
    assert imported.vocab_size > 300

    config = changed(config, continue_from=str(tmp_path))
    model = continued_model(config, continued_shape(config, imported), imported, session)
    ids_BxT = torch.tensor([imported.encode(sentence(3))])
    with torch.no_grad():
        ours, theirs = model(ids_BxT), peer(ids_BxT).logits
    assert ours.shape[-1] == imported.vocab_size
    torch.testing.assert_close(ours[..., :300], theirs[..., :300], atol=1e-5, rtol=1e-5)
