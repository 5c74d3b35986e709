"""A tokenizer of this project's kind, a documents part, and models small enough for a test."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from data_contracts.documents import DOCUMENTS
from data_contracts.tables import write_part
from stages.runtime.events import EventLog
from stages.runtime.session import StageSession
from stages.whitebox.chat_format import SPECIAL_TOKENS, render
from stages.whitebox.checkpoint import save_model
from stages.whitebox.config import ModelConfig
from stages.whitebox.losses import cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import BOS_PIECE, EOS_PIECE, PAD_PIECE, UNK_PIECE, Tokenizer


def symbol_text(title: str, signature: str, sentence: str) -> str:
    """A document as corpus_prep writes one for a symbol."""
    return f"# {title}\n\n```python\n{signature}\n```\n\n{sentence} More."


DOCUMENT_TEXTS = {
    title: symbol_text(title, signature, sentence)
    for title, signature, sentence in [
        ("textwrap.dedent", "dedent(text)", "Remove common leading whitespace."),
        ("os.path.join", "join(a, *p)", "Join two or more path names."),
        ("posixpath.join", "join(a, *p)", "Join path names on POSIX."),
        ("collections.Counter", "class Counter", "Count hashable items."),
    ]
}
SAMPLE_LINES = [
    'What is 12*(3+4)? {"name": "calculator", "arguments": {"expression": "12*(3+4)"}} It is 84.',
    'What does textwrap.dedent do? {"name": "lookup", "arguments": {"symbol": "textwrap.dedent"}}',
    'Search for path names. {"name": "search", "arguments": {"query": "path names"}} 今天天气很好。',
    "user assistant tool system error: division by zero -> 0 1 2 3 4 5 6 7 8 9 ( ) + - * / . مرحبا",
    *DOCUMENT_TEXTS.values(),
]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer_proto() -> bytes:
    """A SentencePiece model trained on the lines above."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SAMPLE_LINES * 4),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        character_coverage=0.98,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        unk_piece=UNK_PIECE,
        bos_piece=BOS_PIECE,
        eos_piece=EOS_PIECE,
        pad_piece=PAD_PIECE,
        control_symbols=list(SPECIAL_TOKENS),
        user_defined_symbols=["\n"],
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def tokenizer(tokenizer_proto: bytes) -> Tokenizer:
    return Tokenizer(tokenizer_proto)


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A documents part with a few symbols, two of them with one last name."""
    folder = tmp_path_factory.mktemp("documents")
    write_part(folder, DOCUMENTS, [document_row(title, text) for title, text in DOCUMENT_TEXTS.items()])
    return folder


def document_row(title: str, text: str) -> dict[str, Any]:
    return {
        "doc_id": title,
        "source": "fixture",
        "title": title,
        "kind": "function",
        "language": "en",
        "split": "train",
        "num_bytes": len(text.encode()),
        "text": text,
    }


class RecordedSession(StageSession):
    """A real session whose events are kept in a list."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            "agent_smoke", folder, EventLog(folder / "events.jsonl", as_json=True, stream=io.StringIO())
        )
        self.events: list[dict[str, Any]] = []
        emit = self._log.emit

        def keep(event: str, **fields: Any) -> None:
            self.events.append({"event": event, **fields})
            emit(event, **fields)

        self._log.emit = keep  # type: ignore[method-assign]

    def named(self, event: str, name: str = "") -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == event and (not name or e.get("name") == name)]


@pytest.fixture
def session(tmp_path: Path) -> RecordedSession:
    return RecordedSession(tmp_path / "work")


def small_model(vocab_size: int, seed: int = 0) -> CausalLM:
    """A decoder of 32 dimensions with random weights."""
    torch.manual_seed(seed)
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
    )
    return CausalLM(config).eval()


def save_with_tokenizer(model: CausalLM, proto: bytes, folder: Path) -> Path:
    """A model folder as the stages write it, as far as talking to it needs."""
    save_model(model, folder)
    (folder / "tokenizer.model").write_bytes(proto)
    return folder


def calling(name: str, **arguments: str) -> dict[str, Any]:
    """The assistant's message that calls a tool."""
    return {"role": "assistant", "content": "", "tool_calls": [{"name": name, "arguments": arguments}]}


def exchange(prompt: str, call: dict[str, Any] | None, result: str, answer: str) -> list[dict[str, Any]]:
    """A conversation of one question, with a tool in between or without."""
    between = [call, {"role": "tool", "content": result}] if call else []
    return [{"role": "user", "content": prompt}, *between, {"role": "assistant", "content": answer}]


LESSONS = [
    exchange("What is 2+3?", calling("calculator", expression="2+3"), "5", "2+3 is 5."),
    exchange("What is 6*7?", calling("calculator", expression="6*7"), "42", "6*7 is 42."),
    exchange(
        "What does os.path.join do?",
        calling("lookup", symbol="os.path.join"),
        "join(a, *p) — Join two or more path names.",
        "Join two or more path names.",
    ),
    exchange("Hello", None, "", "Hello! Ask me."),
]


@pytest.fixture(scope="session")
def untrained(tokenizer: Tokenizer, tokenizer_proto: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a float model with random weights."""
    folder = tmp_path_factory.mktemp("untrained")
    return save_with_tokenizer(small_model(tokenizer.vocab_size), tokenizer_proto, folder)


@pytest.fixture(scope="session")
def trained(tokenizer: Tokenizer, tokenizer_proto: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a float model that has learned the lessons above by heart."""
    model = small_model(tokenizer.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    chats = [render(messages, tokenizer) for messages in LESSONS]
    width = max(len(chat.ids) for chat in chats)
    ids_BxT = torch.tensor([chat.ids + [tokenizer.pad_id] * (width - len(chat.ids)) for chat in chats])
    wanted_BxT = torch.full_like(ids_BxT, -100)
    for row, chat in enumerate(chats):
        for position, is_target in enumerate(chat.is_target):
            if is_target:
                wanted_BxT[row, position - 1] = chat.ids[position]
    for _ in range(120):
        hidden_BxTxD = model.hidden_states(ids_BxT)
        nats, num_tokens = cross_entropy_sum(hidden_BxTxD, model.output_weight(), wanted_BxT)
        (nats / num_tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return save_with_tokenizer(model, tokenizer_proto, tmp_path_factory.mktemp("trained"))
