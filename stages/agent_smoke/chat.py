"""Talk to the models in a terminal: `python -m stages.agent_smoke.chat --model DIR`.

The same turn, grammar and loop as in the stage, so what one sees here is what the stage measures. With
`--compare` several models answer each question in turn. Without a terminal on standard input, each line of it
is one question.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stages.agent_smoke.agent_loop import Step, run_episode
from stages.agent_smoke.assistant import Assistant, Message, load_assistant
from stages.agent_smoke.findings import call_text
from stages.agent_smoke.terminal import Terminal
from stages.agent_smoke.toolbox import ToolBox, open_toolbox

HELP = """\
/help    this text
/reset   forget the conversation so far
/quit    leave; so do Ctrl-D, and Ctrl-C at the prompt
Ctrl-C while an answer is written stops the answer."""

ENDINGS = {
    "budget": "(no answer: the steps or tokens ran out)",
    "loop": "(no answer: the model repeated a call)",
    "invalid": "(no answer: the model wrote nothing that can be used)",
}


@dataclass
class Partner:
    """One model and its side of the conversation."""

    label: str
    assistant: Assistant
    history: list[Message] = field(default_factory=list)

    def forget(self) -> None:
        """Begin a new conversation."""
        self.history = []


@dataclass(frozen=True)
class Conversation:
    """All partners, the tools that they share, and where it is shown."""

    partners: Sequence[Partner]
    toolbox: ToolBox
    terminal: Terminal
    options: argparse.Namespace

    def ask(self, question: str) -> None:
        """Put one question to every partner. KeyboardInterrupt stops the answer and is passed on."""
        for partner in self.partners:
            self._answer(partner, question)

    def _answer(self, partner: Partner, question: str) -> None:
        terminal, options = self.terminal, self.options
        before = list(partner.history) if options.history else []
        partner.history = list(before)
        partner.history.append({"role": "user", "content": question})
        make_room(partner, options.max_new_tokens)
        terminal.begin_answer(partner.label)
        try:
            episode = run_episode(
                partner.history,
                lambda messages: partner.assistant.turn(
                    messages, options.max_new_tokens, temperature=options.temperature, on_text=terminal.write
                ),
                self.toolbox,
                options.max_steps,
                on_step=lambda step: self._show(step, partner.label),
            )
        except KeyboardInterrupt:
            partner.history = before
            terminal.note("(stopped)")
            raise
        if episode.status == "answered":
            partner.history += episode.messages()
        else:
            partner.history = before
            terminal.note(ENDINGS[episode.status])

    def _show(self, step: Step, label: str) -> None:
        self.terminal.end_line()
        if step.call is not None:
            who = f"{label}: " if len(self.partners) > 1 else ""
            self.terminal.note(f"{who}{call_text(step.call)} -> {step.result or step.status}")

    def obey(self, command: str) -> bool:
        """Carry out a line that begins with a slash; False when it says to leave."""
        name = command.split(maxsplit=1)[0]
        if name == "/reset":
            for partner in self.partners:
                partner.forget()
            self.terminal.note("(the conversation begins anew)")
        elif name == "/help":
            self.terminal.note(HELP)
        elif name not in ("/quit", "/exit"):
            self.terminal.note(f"there is no {name}; /help lists the commands")
        return name not in ("/quit", "/exit")

    def follow(self, lines: Iterator[str]) -> None:
        """Answer line after line until they end or one says to leave."""
        for line in lines:
            text = line.strip()
            if text.startswith("/"):
                if not self.obey(text):
                    break
            elif text:
                with contextlib.suppress(KeyboardInterrupt):  # stops the answer, not the conversation
                    self.ask(text)


def make_room(partner: Partner, max_new_tokens: int) -> None:
    """Forget the oldest exchanges until the model's context has room for a turn; the last question stays."""
    assistant = partner.assistant
    while len(assistant.prompt_ids(partner.history)) + max_new_tokens > assistant.context_tokens:
        questions = [i for i, message in enumerate(partner.history) if message["role"] == "user"]
        if len(questions) < 2:
            return
        del partner.history[: questions[1]]


def model_label(folder: Path) -> str:
    """A short name: `dpo` for .../dpo/0123abcd/model, `int8` for .../quantize/0123abcd/int8."""
    folder = folder.resolve()
    return folder.parent.parent.name if folder.name == "model" and folder.parent.parent.name else folder.name


def open_conversation(options: argparse.Namespace, terminal: Terminal) -> Conversation:
    """Load all models and tools. Raises ValueError or OSError where a folder does not hold what it should."""
    tools = not options.no_tools
    toolbox = open_toolbox(options.documents if tools else None, options.store if tools else None)
    partners = [
        Partner(model_label(folder), load_assistant(folder, toolbox.grammar, allow_calls=tools))
        for folder in [options.model, *options.compare]
    ]
    for partner in partners:
        partner.assistant.enable_thinking = not options.no_thinking
    return Conversation(partners, toolbox, terminal, options)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="glassworks chat", description="Talk to a model of a build; it may use its tools."
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a float or quantized model")
    parser.add_argument("--compare", type=Path, nargs="+", default=[], help="more models that answer, too")
    parser.add_argument("--documents", type=Path, help="documents part: what lookup looks in")
    parser.add_argument("--store", type=Path, help="vector store part: what search searches")
    parser.add_argument("--prompt", nargs="+", default=[], help="ask these questions and leave")
    parser.add_argument(
        "--history",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="remember earlier questions; off, because by default it is taught conversations of one question",
    )
    parser.add_argument("--no-tools", action="store_true", help="the model can only talk")
    parser.add_argument(
        "--no-thinking", action="store_true", help="answers begin behind an empty block of reasoning"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=160, help="longest turn, in tokens")
    parser.add_argument("--max-steps", type=int, default=6, help="most turns for one answer")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code: 0, or 2 when a folder does not hold what it should."""
    options = parse_arguments(arguments)
    terminal = Terminal(sys.stdin, sys.stdout)
    try:
        terminal.wait_note("loading ...")
        converse(open_conversation(options, terminal))
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        print(f"error: {error}\n  hint: `glassworks show` lists the artifacts of a store", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        terminal.note("\nbye")
    except BrokenPipeError:  # the reader of our output has left
        sys.stderr.close()
    return 0


def converse(conversation: Conversation) -> None:
    """Answer the questions of the command line, or else those that come from standard input."""
    terminal = conversation.terminal
    if conversation.options.prompt:
        conversation.follow(terminal.echo(conversation.options.prompt))
        return
    terminal.greet([partner.label for partner in conversation.partners], conversation.toolbox.tools)
    conversation.follow(terminal.questions())
    terminal.note("bye")


if __name__ == "__main__":
    # A parent in the background leaves SIGINT ignored and Python keeps it so; here it must stop answers.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
