"""Another model's tokenizer or template is refused by name, with what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.runtime.errors import UserError
from stages.whitebox.tokenizer import Tokenizer, copy_tokenizer
from stages.whitebox.tokenizer_match import check_chat


def test_a_tokenizer_of_the_same_size_and_other_pieces(
    run_sft: Callable[..., Any], base_model: Any, other_tokenizer: Path, tmp_path: Path
) -> None:
    assert Tokenizer.from_folder(other_tokenizer).vocab_size == base_model.tokenizer.vocab_size
    shutil.copytree(base_model.model, tmp_path / "model")
    copy_tokenizer(other_tokenizer, tmp_path / "model")
    with pytest.raises(
        UserError, match=r"another tokenizer of the same size .*token \d+ is .* there and .* here"
    ):
        run_sft(inputs={"model": tmp_path / "model"})


def test_the_template_of_another_model(run_sft: Callable[..., Any], base_model: Any, tmp_path: Path) -> None:
    shutil.copytree(base_model.tokenizer_folder, tmp_path / "t")
    (tmp_path / "t" / "chat_template.jinja").write_text(
        "{% for m in messages %}[INST]{{ m.content }}{% endfor %}"
    )
    with pytest.raises(
        UserError, match=r"chat template in .* is that of another model: it lacks <.im_start.>"
    ):
        run_sft(inputs={"tokenizer": tmp_path / "t"})


class WithoutChat:
    """A base model's tokenizer."""

    def special_id(self, name: str) -> int:
        raise ValueError(name)


def test_a_base_models_tokenizer_lacks_the_chat_tokens(tmp_path: Path) -> None:
    tokenizer: Any = WithoutChat()
    with pytest.raises(ValueError, match=r"lacks <\|im_start\|>, .*that of a base model"):
        check_chat(tokenizer, tmp_path)
