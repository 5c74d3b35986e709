"""Lists and models of the user's own, made once for a stage and read by all who work on its shards.

They lie as plain arrays in a folder; large ones are mapped, so that processes of one machine share them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.corpus_prep.reading.damage import ReadNotes
from stages.corpus_prep.reading.readers import read_rows
from stages.corpus_prep.reading.record_forms import Document, Refused, recognise, unknown_form
from stages.corpus_prep.reading.sources import expand
from stages.corpus_prep.screening.perplexity import CharacterModel, train_character_model
from stages.corpus_prep.screening.phrase_lists import PhraseList, read_phrase_list
from stages.corpus_prep.screening.quality_classifier import QualityClassifier, train_classifier
from stages.corpus_prep.screening.screen_inputs import ScreenConfig, check_screens, list_files
from stages.corpus_prep.screening.screen_records import record_text
from stages.corpus_prep.screening.url_lists import UrlList, read_url_list
from stages.corpus_prep.text_repair import without_surrogates

MAPPED_BYTES = 1 << 20
TEXTS_PER_BATCH = 256
Clean = Callable[[pa.LargeStringArray], pa.LargeStringArray]


@dataclass(frozen=True)
class ScreenModels:
    """What the user gave; None for what was not."""

    urls: UrlList | None = None
    phrases: PhraseList | None = None
    perplexity: CharacterModel | None = None
    quality: QualityClassifier | None = None


def make_models(config: ScreenConfig, clean: Clean, folder: Path) -> Path | None:
    """Read the lists, learn the models, and write both to `folder`; None where the user gave neither.

    clean: does to the texts what is done to documents before they are scored. A folder that is there is
    whole and of the same content: it lies in the work folder of one fingerprint. Raises UserError.
    """
    check_screens(config)
    if not (config.url_lists or config.word_lists or config.good_text):
        return None
    if not folder.exists():
        made = folder.with_name(f"{folder.name}.half")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        _write_lists(config, made)
        _write_models(config, clean, made)
        made.rename(folder)
    return folder


def _write_lists(config: ScreenConfig, folder: Path) -> None:
    if config.url_lists:
        urls = read_url_list(list_files("url_lists", config.url_lists))
        _write(folder, "urls", {}, {name: sorted(entries) for name, entries in vars(urls).items()})
    if config.word_lists:
        arrays = dict(vars(read_phrase_list(list_files("word_lists", config.word_lists))))
        phrases = arrays.pop("phrases")
        _write(folder, "phrases", arrays, {"phrases": phrases})


def _write_models(config: ScreenConfig, clean: Clean, folder: Path) -> None:
    def texts(setting: str) -> Iterator[pa.LargeStringArray]:
        return map(clean, _texts(setting, getattr(config, setting), config.text_field))

    if config.good_text:
        model = train_character_model(texts("good_text"))
        parts = {"grams": model.grams, "contexts": model.contexts}
        arrays = {f"{name}{n}": array for name, part in parts.items() for n, array in enumerate(part)}
        _write(folder, "perplexity", arrays | {"discounts": model.discounts}, {"uniform": model.uniform})
    if config.bad_text:
        classifier = train_classifier(texts("good_text"), texts("bad_text"))
        _write(folder, "quality", {"weights": classifier.weights}, {})


def _texts(setting: str, patterns: Sequence[str], text_field: str) -> Iterator[pa.LargeStringArray]:
    """Texts of the user's files in small batches; of conversations, what is said in them."""
    for file in expand(setting, patterns):
        rows = read_rows(file, ReadNotes())
        while group := list(islice(rows, TEXTS_PER_BATCH)):
            yield pa.array([_text(file.name, row, text_field) for row in group], pa.large_string())


def _text(where: str, row: Mapping[str, Any], text_field: str) -> str:
    form = recognise(row, text_field if text_field in row else "")
    if form is None:
        raise unknown_form(where, row, "")
    record = form.convert(row)
    if isinstance(record, Refused):
        return ""
    return without_surrogates(record.text if isinstance(record, Document) else record_text(record))


def _write(folder: Path, name: str, arrays: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    for part, array in arrays.items():
        np.save(folder / f"{name}.{part}.npy", array)
    (folder / f"{name}.json").write_text(json.dumps(plain, ensure_ascii=False), encoding="utf-8")


@lru_cache(maxsize=1)
def read_models(folder: Path | None) -> ScreenModels:
    """What `make_models` wrote; nothing where that is None."""
    if folder is None:
        return ScreenModels()
    urls, phrases = _read(folder, "urls"), _read(folder, "phrases")
    quality, learned = _read(folder, "quality"), _read(folder, "perplexity")
    return ScreenModels(
        UrlList(**{name: frozenset(entries) for name, entries in urls.items()}) if urls else None,
        PhraseList(**{**phrases, "phrases": tuple(phrases["phrases"])}) if phrases else None,
        _character_model(learned) if learned else None,
        QualityClassifier(**quality) if quality else None,
    )


def _character_model(parts: Mapping[str, Any]) -> CharacterModel:
    grams = (parts["grams0"], parts["grams1"], parts["grams2"])
    contexts = (parts["contexts0"], parts["contexts1"], parts["contexts2"], parts["contexts3"])
    return CharacterModel(grams, contexts, parts["discounts"], parts["uniform"])


def _read(folder: Path, name: str) -> dict[str, Any]:
    """Everything under that name; {} where there is nothing."""
    path = folder / f"{name}.json"
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for array in sorted(folder.glob(f"{name}.*.npy")):
        found[array.name.split(".")[1]] = _array(array)
    return found


def _array(path: Path) -> Any:
    """Small ones read, large ones mapped; writable (privately): read-only ones want loops of their own."""
    mapped = path.stat().st_size > MAPPED_BYTES
    return np.asarray(np.load(path, mmap_mode="c" if mapped else None))
