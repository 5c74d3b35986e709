"""One turn of a model: format, budget, streaming, and which kinds of checkpoint open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.agent_smoke import assistant as assistants
from stages.agent_smoke.assistant import Assistant, load_any_model, load_assistant
from stages.agent_smoke.toolbox import ToolBox, open_toolbox
from stages.quantize.rounding import quantize_nearest
from stages.whitebox.chat_format import render
from stages.whitebox.checkpoint import load_model
from stages.whitebox.quantized_checkpoint import QuantizedWeights, save_quantized
from stages.whitebox.tokenizer import Tokenizer
from tests.generated_conversations import generated

GREETING = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def toolbox(documents: Path) -> ToolBox:
    return open_toolbox(documents, None)


@pytest.fixture(scope="module")
def wild(untrained: Path, toolbox: ToolBox) -> Assistant:
    return load_assistant(untrained, toolbox.grammar)


def test_every_call_of_an_untrained_model_runs(wild: Assistant, toolbox: ToolBox) -> None:
    begun = 0
    for seed in range(24):
        turn = wild.turn(GREETING, 60, temperature=1.5, seed=seed)
        assert not turn.malformed
        if turn.call is not None:
            begun += 1
            assert toolbox.problem(turn.call) is None
    assert begun >= 2, "a model with random weights begins a call now and then"


def test_prompts_are_the_beginnings_of_what_training_rendered(wild: Assistant) -> None:
    empty = wild.tokenizer.encode("<think>\n\n</think>\n\n")
    for messages, _ in generated(60, seed=2):
        trained = render(messages, wild.tokenizer)
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = wild.prompt_ids(messages[:place])
                assert trained.ids[: len(prompt)] == prompt
                assert not trained.is_target[len(prompt) - 1] and trained.is_target[len(prompt)]
        wild.enable_thinking = False
        assert (
            wild.prompt_ids(messages[:1])
            == render(messages[:1], wild.tokenizer, add_generation_prompt=True).ids + empty
        )
        wild.enable_thinking = True


def test_a_turn_ends_within_its_tokens(wild: Assistant) -> None:
    turns = [wild.turn(GREETING, 20, seed=seed, temperature=1.0) for seed in range(10)]
    assert all(turn.num_tokens <= 20 for turn in turns)
    assert all(turn.finished == (turn.num_tokens < 20) for turn in turns)


def test_greedy_turns_repeat_exactly(wild: Assistant) -> None:
    assert wild.turn(GREETING, 24) == wild.turn(GREETING, 24)


def test_a_conversation_that_fills_the_context_gives_no_turn(wild: Assistant) -> None:
    turn = wild.turn([{"role": "user", "content": "word " * 400}], 24)
    assert (turn.text, turn.finished, turn.num_tokens) == ("", False, 0)


def test_without_tools_no_call_is_ever_begun(untrained: Path, toolbox: ToolBox) -> None:
    talker = load_assistant(untrained, toolbox.grammar, allow_calls=False)
    assert all(talker.turn(GREETING, 40, temperature=1.5, seed=seed).call is None for seed in range(24))


def test_free_text_is_streamed_whole_and_calls_are_not(trained: Path, toolbox: ToolBox) -> None:
    scholar = load_assistant(trained, toolbox.grammar)
    pieces: list[str] = []
    turn = scholar.turn(GREETING, 40, on_text=pieces.append)
    assert (turn.text, "".join(pieces)) == ("Hello! Ask me.", "Hello! Ask me.")
    assert len(pieces) > 1
    pieces.clear()
    turn = scholar.turn([{"role": "user", "content": "What is 2+3?"}], 60, on_text=pieces.append)
    assert turn.call == {"name": "calculator", "arguments": {"expression": "2+3"}}
    assert pieces == []


def test_a_character_in_several_tokens_is_shown_once_it_is_whole(tokenizer: Tokenizer) -> None:
    pieces: list[str] = []
    shown = assistants.TextStream(tokenizer, pieces.append)
    for token in tokenizer.encode("é😀"):
        shown.add(token)
    assert "".join(pieces) == "é😀" and "\ufffd" not in "".join(pieces)


def test_quantized_folders_are_opened_as_such(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in untrained.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    opened: list[Path] = []
    monkeypatch.setattr(assistants, "load_quantized", opened.append)
    load_any_model(tmp_path)
    assert opened == []
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {}}))
    load_any_model(tmp_path)
    assert opened == [tmp_path]


def test_a_quantized_model_answers_as_the_float_one(trained: Path, tmp_path: Path, toolbox: ToolBox) -> None:
    model = load_model(trained)
    weights = model.state_dict().items()
    matrices = {name.removesuffix(".weight"): quantize_nearest(w, 8) for name, w in weights if w.ndim == 2}
    others = {name: w for name, w in weights if w.ndim != 2}
    save_quantized(QuantizedWeights(model.config, matrices, others), tmp_path)
    (tmp_path / "tokenizer.model").write_bytes((trained / "tokenizer.model").read_bytes())
    exact, rounded = (load_assistant(folder, toolbox.grammar) for folder in (trained, tmp_path))
    for question in ("Hello", "What is 6*7?"):
        messages = [{"role": "user", "content": question}]
        assert exact.turn(messages, 60) == rounded.turn(messages, 60)


def test_a_folder_without_a_model_is_named(tmp_path: Path, toolbox: ToolBox) -> None:
    with pytest.raises(ValueError, match="holds no model: expected"):
        load_assistant(tmp_path, toolbox.grammar)
