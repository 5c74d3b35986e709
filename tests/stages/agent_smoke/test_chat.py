"""The chat as a person and as a script would use it."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.agent_smoke import chat
from stages.agent_smoke.assistant import Message
from stages.agent_smoke.chat import Partner, make_room, model_label
from stages.agent_smoke.terminal import Terminal

Talk = Callable[..., tuple[int, str, str]]


@pytest.fixture
def talk(
    trained: Path, documents: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Talk:
    """Runs the program with these lines on standard input; gives exit code, output and error output."""

    def run_with(*arguments: str, lines: str = "", model: Path = trained) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code = chat.main(["--model", str(model), "--documents", str(documents), *arguments])
        return code, *capsys.readouterr()

    return run_with


def test_one_question_per_line_without_a_terminal(talk: Talk) -> None:
    code, out, _ = talk("--no-history", lines="Hello\n\nWhat is 2+3?\n")
    name = out.splitlines()[1].partition(">")[0]
    assert code == 0
    assert out.splitlines() == [
        "you> Hello",
        f"{name}> Hello! Ask me.",
        "you> What is 2+3?",
        'calculator(expression="2+3") -> 5',
        f"{name}> 2+3 is 5.",
        "bye",
    ]


def test_prompts_on_the_command_line(talk: Talk) -> None:
    code, out, _ = talk("--no-history", "--prompt", "What is 6*7?", "Hello")
    assert code == 0 and "6*7 is 42." in out and "Hello! Ask me." in out and "bye" not in out


def test_commands(talk: Talk) -> None:
    code, out, _ = talk(lines="/help\n/reset\n/what\n/quit\nHello\n")
    assert code == 0
    assert "/reset   forget" in out and "(the conversation begins anew)" in out
    assert "there is no /what; /help lists the commands" in out
    assert "Ask me" not in out, "nothing is answered after /quit"


def test_compare_lets_each_model_answer(talk: Talk, untrained: Path) -> None:
    _, out, _ = talk("--compare", str(untrained), "--prompt", "Hello", "--max-new-tokens", "24")
    assert "> Hello! Ask me." in out
    _, calls, _ = talk("--compare", str(untrained), "--prompt", "What is 2+3?", "--max-new-tokens", "40")
    assert ': calculator(expression="2+3") -> 5' in calls, "several models: each call says whose it is"
    assert len(out.splitlines()) >= 3, "the untrained model says something or says that it cannot"


def test_without_tools_nothing_is_called(talk: Talk) -> None:
    _, out, _ = talk("--no-tools", "--prompt", "What is 2+3?", "--max-new-tokens", "24")
    assert "calculator(" not in out


def test_an_episode_without_an_answer_says_why(talk: Talk) -> None:
    _, out, _ = talk("--prompt", "What is 2+3?", "--max-steps", "1")
    assert "(no answer: the steps or tokens ran out)" in out


def test_a_wrong_folder_is_named(talk: Talk, tmp_path: Path) -> None:
    code, _, err = talk(model=tmp_path)
    assert code == 2 and f"{tmp_path} holds no model" in err and "hint:" in err


def test_ctrl_c_while_loading_leaves_quietly(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "open_conversation", interrupted)
    code, out, err = talk()
    assert (code, out, err) == (0, "\nbye\n", "")


def test_history_is_kept_and_reset(trained: Path, documents: Path) -> None:
    options = chat.parse_arguments(
        ["--model", str(trained), "--documents", str(documents), "--history", "--max-new-tokens", "48"]
    )
    conversation = chat.open_conversation(options, Terminal(io.StringIO(), io.StringIO()))
    conversation.follow(iter(["What is 2+3?"]))
    (partner,) = conversation.partners
    assert [message["role"] for message in partner.history] == ["user", "assistant", "tool", "assistant"]
    conversation.follow(iter(["What is 2+3?"]))
    assert [message["role"] for message in partner.history].count("user") == 2
    conversation.follow(iter(["/reset"]))
    assert partner.history == []


def test_without_history_each_question_stands_alone(trained: Path, documents: Path) -> None:
    options = chat.parse_arguments(["--model", str(trained), "--documents", str(documents)])
    conversation = chat.open_conversation(options, Terminal(io.StringIO(), io.StringIO()))
    conversation.follow(iter(["What is 2+3?", "What is 2+3?"]))
    (partner,) = conversation.partners
    assert [message["role"] for message in partner.history].count("user") == 1


def test_an_interrupted_answer_is_taken_back(trained: Path, documents: Path) -> None:
    options = chat.parse_arguments(["--model", str(trained), "--documents", str(documents)])
    shown = io.StringIO()
    conversation = chat.open_conversation(options, Terminal(io.StringIO(), shown))
    (partner,) = conversation.partners
    answer = partner.assistant.turn

    def interrupted(messages: list[Message], *arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    partner.assistant.turn = interrupted  # type: ignore[method-assign,assignment]
    conversation.follow(iter(["Hello"]))
    assert partner.history == [] and "(stopped)" in shown.getvalue()
    partner.assistant.turn = answer  # type: ignore[method-assign]
    conversation.follow(iter(["Hello"]))
    assert "Hello! Ask me." in shown.getvalue()


class CountingAssistant:
    """Ten tokens per message."""

    context_tokens = 100

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        return [0] * 10 * len(messages)


def history_of(*roles: str) -> list[Message]:
    return [{"role": role, "content": str(number)} for number, role in enumerate(roles)]


def test_the_oldest_exchanges_make_room_whole() -> None:
    partner = Partner("m", CountingAssistant())  # type: ignore[arg-type]
    partner.history = history_of("user", "assistant", "tool", "assistant", "user", "assistant", "user")
    make_room(partner, 50)
    assert [message["content"] for message in partner.history] == ["4", "5", "6"]


def test_the_last_question_stays_however_long() -> None:
    partner = Partner("m", CountingAssistant(), history_of("user"))  # type: ignore[arg-type]
    make_room(partner, 95)
    assert len(partner.history) == 1


def test_labels_come_from_the_store() -> None:
    assert model_label(Path("/store/artifacts/dpo/0123abcd/model")) == "dpo"
    assert model_label(Path("/store/artifacts/quantize/0123abcd/int4")) == "int4"


class Terminals(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_colours_and_greeting_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen, pipe = Terminals(), io.StringIO()
    for target in (screen, pipe):
        terminal = Terminal(Terminals(), target)
        terminal.greet(["dpo"], ["calculator"])
        terminal.begin_answer("dpo")
        terminal.write("Hi")
        terminal.end_line()
    assert "\033[" in screen.getvalue() and "dpo; tools: calculator" in screen.getvalue()
    assert pipe.getvalue() == "dpo> Hi\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Terminal(Terminals(), screen).coloured


def test_ctrl_c_at_the_prompt_leaves_without_a_traceback(trained: Path, repository: Path) -> None:
    main_fd, program_fd = os.openpty()
    command = [sys.executable, "-m", "stages.agent_smoke.chat", "--model", str(trained)]
    process = subprocess.Popen(
        command,
        stdin=program_fd,
        stdout=program_fd,
        stderr=program_fd,
        cwd=repository,
        start_new_session=True,
    )
    os.close(program_fd)
    read_until(main_fd, b"you> ", seconds=60)
    rest = b""
    for _ in range(10):  # a signal between prompt and wait is only seen with the next key or signal
        process.send_signal(signal.SIGINT)
        rest += read_until(main_fd, b"bye", seconds=3)
        if b"bye" in rest:
            break
    assert process.wait(timeout=20) == 0
    assert b"bye" in rest and b"Traceback" not in rest
    os.close(main_fd)


def read_until(descriptor: int, wanted: bytes, seconds: float) -> bytes:
    """What comes from a terminal until `wanted` is in it, its other end closes, or time runs out."""
    seen, deadline = b"", time.monotonic() + seconds
    while wanted not in seen and time.monotonic() < deadline:
        if select.select([descriptor], [], [], 0.2)[0]:
            try:
                seen += os.read(descriptor, 4096)
            except OSError:  # the program has closed its end
                break
    return seen
