"""Two hundred conversations of every shape: trained is what the assistant says; all paths make one text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.tokenizer.bundle import write_bundle
from stages.tokenizer.training import train_sentencepiece
from stages.whitebox.chat_format import RenderedChat, render
from stages.whitebox.chat_template import chat_template
from stages.whitebox.config import ModelConfig
from stages.whitebox.losses import IGNORED, cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.packing import PackedRows, pack
from stages.whitebox.tokenizer import Tokenizer
from stages.whitebox.trainer import StepLoss, TrainerSettings, train
from tests.generated_conversations import everything_the_assistant_says, generated

CONVERSATIONS = generated(200)


@pytest.fixture(scope="module")
def tokenizer(repository: Path) -> Tokenizer:
    text = (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")
    return Tokenizer(train_sentencepiece([text], 700, 0.9995))


@pytest.fixture(scope="module")
def rendered(tokenizer: Tokenizer) -> list[RenderedChat]:
    return [render(messages, tokenizer, tools=tools) for messages, tools in CONVERSATIONS]


def spelled(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    """Ids as bytes, markers by name."""
    return b"".join(
        tokenizer.piece(i).encode() if tokenizer.is_special(i) else tokenizer.token_bytes(i) for i in ids
    )


def unpacked(rows: PackedRows) -> list[tuple[list[int], list[int], bool]]:
    """Ids, labels that count, and whether the end is marked as cut, of every conversation in the rows."""
    found = []
    for row in range(rows.num_rows):
        for number in range(1, int(rows.document_ids_RxT[row].max()) + 1):
            inside = rows.document_ids_RxT[row] == number
            labels = rows.labels_RxT[row][inside]
            counted = labels[labels != IGNORED].tolist()
            cut = bool(rows.ends_cut_RxT[row][inside].any())
            found.append((rows.ids_RxT[row][inside].tolist(), counted, cut))
    return found


def test_what_is_not_masked_is_exactly_what_the_assistant_says(
    tokenizer: Tokenizer, rendered: list[RenderedChat]
) -> None:
    rows = pack(rendered, max(len(chat.ids) for chat in rendered), tokenizer.pad_id)
    said = {
        tuple(chat.ids): everything_the_assistant_says(messages)
        for chat, (messages, _) in zip(rendered, CONVERSATIONS, strict=True)
    }
    silent = sum(not text for text in said.values())
    found = unpacked(rows)
    assert len(found) == 200 - rows.num_without_targets and rows.num_without_targets == silent
    for ids, counted, cut in found:
        assert spelled(tokenizer, counted).decode() == said[tuple(ids)]
        assert not cut
    assert rows.num_truncated == rows.num_cut_before_call == 0


def test_cut_at_every_place_it_is_the_beginning_of_that_and_no_call_is_cut(
    tokenizer: Tokenizer, rendered: list[RenderedChat]
) -> None:
    opening, closing = (tokenizer.special_id(name) for name in ("<tool_call>", "</tool_call>"))
    for chat, (messages, _) in list(zip(rendered, CONVERSATIONS, strict=True))[:60]:
        whole = everything_the_assistant_says(messages).encode()
        for length in range(2, len(chat.ids) + 1, 3):
            if not any(chat.is_target[1:length]):
                continue
            try:
                rows = pack([chat], length, tokenizer.pad_id)
            except ValueError:  # all that was to be trained on is the call that does not fit
                assert any(begins < length < stops for begins, stops in chat.calls)
                continue
            ((ids, counted, cut),) = unpacked(rows)
            assert whole.startswith(spelled(tokenizer, counted))
            assert ids.count(opening) == ids.count(closing)
            assert cut == (len(ids) < len(chat.ids)) == bool(rows.num_truncated)
            assert bool(rows.num_cut_before_call) == (len(ids) < min(length, len(chat.ids)))
            assert rows.num_cut_before_call == any(begins < length < stops for begins, stops in chat.calls)


@pytest.fixture(scope="module")
def exported(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer as transformers opens it."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("exported")
    write_bundle(tokenizer, folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("reasoning", ["keep", "drop", "last_turn"])
def test_training_serving_and_transformers_make_the_same_ids(
    tokenizer: Tokenizer, exported: Any, reasoning: Any
) -> None:
    ours = tokenizer.with_reasoning(reasoning)
    template = chat_template(reasoning)
    for messages, tools in CONVERSATIONS:
        theirs = exported.apply_chat_template(
            messages, tools=tools or None, chat_template=template, return_dict=True,
            return_assistant_tokens_mask=True,
        )  # fmt: skip
        chat = render(messages, ours, tools=tools)
        assert theirs["input_ids"] == chat.ids
        assert [bool(bit) for bit in theirs["assistant_masks"]] == chat.is_target
        for thinking in (True, False):
            prompt = exported.apply_chat_template(
                messages, tools=tools or None, chat_template=template, return_dict=True,
                add_generation_prompt=True, enable_thinking=thinking,
            )["input_ids"]  # fmt: skip
            asked = render(messages, ours, tools=tools, add_generation_prompt=True, enable_thinking=thinking)
            assert asked.ids == prompt


def model_of(vocab_size: int) -> CausalLM:
    torch.manual_seed(0)
    return CausalLM(ModelConfig(vocab_size, 32, 64, 2, 2, 1, 16))


def test_no_gradient_crosses_from_one_conversation_into_another(
    tokenizer: Tokenizer, rendered: list[RenderedChat]
) -> None:
    """The loss of one conversation has no gradient in the others, and in itself as if it were alone."""
    chats = sorted((chat for chat in rendered if chat.num_targets), key=lambda chat: len(chat.ids))[20:24]
    width = sum(len(chat.ids) for chat in chats) + 3
    rows = pack(chats, width, tokenizer.pad_id)
    assert rows.num_rows == 1
    model = model_of(tokenizer.vocab_size)
    documents = rows.document_ids_RxT[0]
    for number in range(1, 5):
        inside = documents == number
        targets = np.where(inside, rows.targets_RxT[0], IGNORED)
        packed = embedding_gradient(model, rows.ids_RxT[0], targets, rows.positions_RxT[0], documents)
        assert (packed[~torch.from_numpy(inside)] == 0).all()
        alone = embedding_gradient(model, rows.ids_RxT[0][inside], targets[inside])
        torch.testing.assert_close(packed[torch.from_numpy(inside)], alone, rtol=1e-4, atol=1e-6)
        assert rows.positions_RxT[0][inside].tolist() == list(range(int(inside.sum())))


def embedding_gradient(model: CausalLM, ids: Any, targets: Any, *masks: Any) -> torch.Tensor:
    """Gradient of the summed loss by the embedding of each token: TxD."""
    kept: list[torch.Tensor] = []
    hook = model.model.embed_tokens.register_forward_hook(
        lambda _module, _inputs, output: kept.append(output.detach().requires_grad_()) or kept[0]
    )
    tensors = [torch.from_numpy(np.asarray(array)[None]).long() for array in (ids, targets, *masks)]
    h_1xTxD = model.hidden_states(tensors[0], *tensors[2:])
    cross_entropy_sum(h_1xTxD, model.output_weight(), tensors[1])[0].backward()
    hook.remove()
    return kept[0].grad[0]  # type: ignore[index]


class AllMasked:
    """Batches in which nothing is trained on, from the second one on."""

    def __init__(self) -> None:
        self.drawn = 0

    def next_batch(self) -> dict[str, torch.Tensor]:
        self.drawn += 1
        ids = torch.arange(4, 20)[None]
        return {"ids": ids, "targets": ids.clone() if self.drawn == 1 else torch.full_like(ids, IGNORED)}

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


def test_a_batch_in_which_everything_is_masked_changes_nothing_and_is_reported(tmp_path: Path) -> None:
    def loss(model: CausalLM, batch: dict[str, torch.Tensor]) -> StepLoss:
        h_BxTxD = model.hidden_states(batch["ids"])
        return StepLoss(*cross_entropy_sum(h_BxTxD, model.output_weight(), batch["targets"]))

    def trained(steps: int) -> tuple[dict[str, torch.Tensor], list[str]]:
        from safetensors.torch import load_file

        said: list[str] = []
        folder = tmp_path / str(steps)
        settings = TrainerSettings(
            total_steps=steps, learning_rate=1e-2, decay_fraction=0.0, accumulation_steps=1
        )
        train(
            model_of(40),
            AllMasked(),
            loss,
            settings,
            checkpoint_dir=folder,
            on_step=lambda *_: None,
            log=said.append,
        )
        return load_file(max(folder.glob("step-*")) / "tensors.safetensors"), said

    (once, _), (again, said) = trained(1), trained(4)
    assert any(name.startswith("optimizer.exp_avg") for name in once) and once.keys() == again.keys()
    for name, tensor in once.items():
        assert torch.equal(tensor, again[name]), name
        assert torch.isfinite(tensor.float()).all()
    assert said == [f"step {step} has no targets, so it changes nothing" for step in (2, 3, 4)]
