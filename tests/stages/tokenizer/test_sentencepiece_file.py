"""The model file, read and written without protobuf, against protobuf's own reading."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece

from stages.tokenizer.sentencepiece_file import Piece, read_pieces, replace_pieces
from stages.tokenizer.training import train_sentencepiece


@pytest.fixture(scope="module")
def model(repository: Path) -> bytes:
    text = (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")
    return train_sentencepiece([text], 700, 0.9995)


def test_pieces_as_protobuf_reads_them(model: bytes) -> None:
    proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    parsed = proto.ModelProto()
    parsed.ParseFromString(model)
    assert [(p.piece, p.score, p.type) for p in parsed.pieces] == [
        (p.text, p.score, p.kind) for p in read_pieces(model)
    ]
    assert parsed.trainer_spec.byte_fallback
    assert parsed.normalizer_spec.name == "identity"


def test_writing_what_was_read_changes_nothing(model: bytes) -> None:
    assert replace_pieces(model, read_pieces(model)) == model


def test_new_pieces_are_in_use(model: bytes) -> None:
    longer = replace_pieces(model, [*read_pieces(model), Piece("灯塔🚢" * 50, -1.5)])
    processor = sentencepiece.SentencePieceProcessor(model_proto=longer)
    assert processor.vocab_size() == 701
    assert processor.id_to_piece(700) == "灯塔🚢" * 50
    assert processor.get_score(700) == -1.5


@pytest.mark.parametrize("cut", [1, 7, 100])
def test_a_file_that_was_cut_short_is_refused(model: bytes, cut: int) -> None:
    with pytest.raises(ValueError, match="no SentencePiece model"):
        read_pieces(model[:-cut])
    with pytest.raises(ValueError, match="wire type"):
        read_pieces(b"\x0f" + model)
