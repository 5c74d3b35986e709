"""A larger model as teacher: opened and checked, and its own answers in place of those of the corpus.

Answers instead of logits: the student learns from whole texts (Kim and Rush 2016, arXiv:1606.07947, section
3.2). They are written once, before the training, into a file that a stopped run goes on with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from stages.runtime.session import StageSession
from stages.sft.conversations import drawn_rows, last_answer
from stages.sft.spec import SftConfig
from stages.sft.teacher_files import teacher_folder
from stages.sft.training_loss import Teacher
from stages.whitebox.chat_format import (
    IM_END,
    TOOL_CALL,
    messages_from_columns,
    parse_completion,
    render,
    tools_from_column,
)
from stages.whitebox.checkpoint import load_model
from stages.whitebox.generate import generate
from stages.whitebox.tokenizer import Tokenizer
from stages.whitebox.tokenizer_match import check_same_tokens
from stages.whitebox.trainer import TrainingStopped

Row = Mapping[str, Any]
Answer = dict[str, Any]


def open_teacher(config: SftConfig, tokenizer: Tokenizer, device: torch.device) -> Teacher | None:
    """The teacher that the settings name, or None.

    Raises:
        ValueError: its vocabulary is another.
        UserError: there is no model where the setting says.
    """
    if not config.teacher:
        return None
    folder = teacher_folder(config)
    model = load_model(folder, device, dtype=torch.float32).eval().requires_grad_(False)
    check_same_tokens(tokenizer, model, folder, "the teacher")
    return Teacher(model, config.teacher_temperature, config.teacher_share)


def check_reach(teacher: Teacher | None, context_tokens: int) -> None:
    """Raises ValueError where the teacher is to read rows that are longer than it can."""
    limit = context_tokens if teacher is None or not teacher.share else teacher.model.config.context_limit
    if limit < context_tokens:
        raise ValueError(
            f"rows have {context_tokens} tokens, the teacher reads at most {limit}; set [sft] "
            f"context_tokens = {limit}, or teacher_share = 0 to learn from its answers alone"
        )


def answers_of(
    config: SftConfig, teacher: Teacher | None, tokenizer: Tokenizer, folder: Path, session: StageSession
) -> dict[str, Answer]:
    """What the teacher answers the training conversations in `folder`; nothing where it is not to.

    Raises:
        TrainingStopped: the stage was asked to stop; what is written so far is kept.
    """
    if teacher is None or not config.teacher_answers:
        return {}
    rows = [row for row in drawn_rows(folder, config.max_conversations) if row["split"] == "train"]

    def say(done: int) -> None:
        session.progress(done, len(rows), "answers")
        if session.should_stop():
            raise TrainingStopped(
                f"stopped after {done} of {len(rows)} answers of the teacher; they are kept"
            )

    path = session.work_dir / "teacher_answers.jsonl"
    answers = teacher_answers(rows, teacher, tokenizer, config.teacher_answer_tokens, path, say)
    session.log(
        f"the teacher answers {len(answers):,} of {len(rows):,} conversations; where it was not through "
        f"within {config.teacher_answer_tokens} tokens, or called a tool wrongly, the corpus' answer stays"
    )
    return answers


def teacher_answers(
    rows: Iterable[Row],
    teacher: Teacher,
    tokenizer: Tokenizer,
    max_tokens: int,
    path: Path,
    say: Callable[[int], None],
) -> dict[str, Answer]:
    """Conversation id -> the assistant's last turn as the teacher writes it, greedy, where it finished it.

    Those in `path` are taken from there, new ones are added to it. `say` is told how many are through.
    """
    answers = _read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for done, row in enumerate(rows, start=1):
            key = row["conversation_id"]
            if key not in answers:
                answers[key] = _answer(row, teacher, tokenizer, max_tokens)
                file.write(json.dumps([key, answers[key]], ensure_ascii=False) + "\n")
                file.flush()
            say(done)
    return {key: answer for key, answer in answers.items() if answer is not None}


def _read(path: Path) -> dict[str, Answer | None]:
    """What a stopped run had written; a line that was cut is written again."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return dict(json.loads(line) for line in whole.split("\n")[:-1])


def _answer(row: Row, teacher: Teacher, tokenizer: Tokenizer, max_tokens: int) -> Answer | None:
    messages = messages_from_columns(row["messages"])
    place = last_answer(messages)
    prompt = messages[:place]
    if place is None or not prompt or messages[place].get("weight") == 0:
        return None
    tools = tools_from_column(row["tools"])
    ids = render(prompt, tokenizer, add_generation_prompt=True, tools=tools).ids
    room = min(max_tokens, teacher.model.config.context_limit - len(ids))
    if room < 2:
        return None
    stop_ids = {tokenizer.special_id(IM_END), tokenizer.eos_id}
    written = generate(teacher.model, ids, max_new_tokens=room, stop_ids=stop_ids)
    message = parse_completion(written, tokenizer)
    is_broken = len(message["tool_calls"]) != written.count(tokenizer.special_id(TOOL_CALL))
    return None if len(written) == room or not written or is_broken else message
