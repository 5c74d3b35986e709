"""Another project's tokenizer.json as our bundle: with our chat markers, and only if every text comes back.

What is changed in the file: chat markers, BOS and padding are appended where they are missing; markers become
special; no space is put before a text, and none is stripped, because parts of a conversation are put together
and texts come back as they were; a text begins with BOS, as all of ours do. The ids of text stay what they
were, but for that first space.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.runtime.errors import UserError
from stages.tokenizer.hugging_face import begin_with_bos
from stages.whitebox.chat_format import SPECIAL_TOKENS
from stages.whitebox.imported_tokenizer import ROLES, ImportedTokenizer, kinds
from stages.whitebox.tokenizer import BOS_PIECE, EOS_PIECE, PAD_PIECE

KNOWN_MODELS = ("BPE", "Unigram")
USUAL_NAMES = {
    "bos_token": ("<|begin_of_text|>", "<s>", "<bos>"),
    "eos_token": ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>"),
    "pad_token": ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>"),
    "unk_token": ("<unk>",),
}
OUR_NAMES = {"bos_token": BOS_PIECE, "eos_token": EOS_PIECE, "pad_token": PAD_PIECE}
PROBES = (
    "The lamp, THE lamp.  Two  spaces ",
    " leading\n\n\n\ttabs\r\n trailing \n",
    "灯塔看守人，１２３ﬁ㎏",
    "يعدّ حارس naïve Ünïcode Straße",
    "🚢👩\u200d👩\u200d👧 \x00\x01\x7f\u00a0\u3000\ufeff",
    "<unk> <s> [UNK] <0x0A> don't isn't it 's x's",
)
"""Texts that must come back. All are in NFC: a normaliser that makes NFC of a text changes none of them."""
DECOMPOSED = "e\u0301"


@dataclass(frozen=True)
class Imported:
    """The tokenizer, its tokenizer.json, who plays which role, and what a user should know."""

    tokenizer: ImportedTokenizer
    document: dict[str, Any]
    roles: dict[str, str]
    warnings: list[str]


def import_tokenizer(files: Mapping[str, Path]) -> Imported:
    """Read tokenizer.json, and the two small files beside it if they are there, by name.

    Raises UserError with the reason when the tokenizer would lose something.
    """
    document = _load(files["tokenizer.json"])
    model = document.get("model") or {}
    kind = model.get("type", "BPE" if "merges" in model else "unknown")
    if kind not in KNOWN_MODELS:
        raise _refused(f"its model is {kind}, which forgets spaces and characters that it does not know")
    roles = _roles(document, files)
    _without_made_up_spaces(document)
    _append_markers(document, roles)
    document |= {"truncation": None, "padding": None}
    ids = {token["content"]: token["id"] for token in document["added_tokens"]}
    document["post_processor"] = begin_with_bos(roles["bos_token"], ids[roles["bos_token"]])
    try:
        tokenizer = ImportedTokenizer(json.dumps(document, ensure_ascii=False), roles)
    except (ValueError, KeyError) as error:
        raise _refused(str(error)) from error
    return Imported(tokenizer, document, roles, _check(tokenizer, document, ids))


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _refused(f"{path.name} is no JSON ({error})") from error
    if not isinstance(document, dict) or "model" not in document:
        raise _refused(f"{path.name} has no model, expected a file of Hugging Face's tokenizers")
    return document


def _refused(reason: str) -> UserError:
    return UserError(
        f"the tokenizer of [tokenizer] import_from cannot be used: {reason}",
        hint="import a BPE or unigram tokenizer that keeps every text, or learn one (import_from = '')",
    )


def _roles(document: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, str]:
    """Role -> name: as the files beside say, else by usual names, else ours, which `_append_markers` adds.

    BOS, EOS and padding must be three tokens: a document's first token tells where it begins.
    """
    known = {token["content"] for token in document.get("added_tokens") or ()}
    said: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        said |= _load_roles(files[name]) if name in files else {}
    roles: dict[str, str] = {}
    for role in ("eos_token", "bos_token", "pad_token", "unk_token"):
        value = said.get(role)
        name = value.get("content") if isinstance(value, Mapping) else value
        guesses = [name, *(guess for guess in USUAL_NAMES[role] if role not in said or name is None)]
        taken = set() if role == "unk_token" else set(roles.values())
        found = [guess for guess in guesses if guess in known and guess not in taken]
        if found or role in OUR_NAMES:
            roles[role] = found[0] if found else OUR_NAMES[role]
    return roles


def _load_roles(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return {role: content[role] for role in ROLES if content.get(role)}


def _append_markers(document: dict[str, Any], roles: Mapping[str, str]) -> None:
    added = [dict(token) for token in document.get("added_tokens") or ()]
    needed = (*(roles[role] for role in OUR_NAMES), *SPECIAL_TOKENS)
    for token in added:
        token |= {"lstrip": False, "rstrip": False, "single_word": False}  # spaces beside it are text
        token["special"] = bool(token["special"]) or token["content"] in needed
    vocabulary = document["model"]["vocab"]
    highest = max([len(vocabulary) - 1, *(token["id"] for token in added)])
    if isinstance(vocabulary, Mapping):
        highest = max(highest, *vocabulary.values())
    present = {token["content"] for token in added}
    for name in dict.fromkeys(needed):
        if name not in present:
            highest += 1
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            added.append({"id": highest, "content": name, **flags, "special": True})
    document["added_tokens"] = added


def _without_made_up_spaces(document: dict[str, Any]) -> None:
    """No space in front of a text, none stripped from it."""
    document["normalizer"] = _edited(document.get("normalizer"), drop={"Prepend"})
    document["pre_tokenizer"] = _edited(document.get("pre_tokenizer"), drop=set())
    document["decoder"] = _edited(document.get("decoder"), drop={"Strip"})


def _edited(component: Any, drop: set[str]) -> Any:
    if not isinstance(component, Mapping):
        return component
    edited = dict(component)
    if edited.get("type") in drop:
        return None
    if edited.get("type") in ("Metaspace", "ByteLevel") and "add_prefix_space" in edited:
        edited["add_prefix_space"] = False
    if edited.get("type") == "Metaspace":
        edited["prepend_scheme"] = "never"
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in edited:
            inner = [_edited(part, drop) for part in edited[key]]
            edited[key] = [part for part in inner if part is not None]
            if not edited[key]:
                return None
    return edited


def _check(tokenizer: ImportedTokenizer, document: Mapping[str, Any], ids: Mapping[str, int]) -> list[str]:
    for name, token_id in ids.items():
        if tokenizer.is_special(token_id) and tokenizer.special_id(name) != token_id:
            raise _refused(f"two special tokens have the id {token_id}")
    for probe in PROBES:
        back = tokenizer.decode(tokenizer.encode(probe))
        if back != probe:
            parts = [*kinds(document.get("normalizer")), *kinds(document.get("pre_tokenizer"))]
            raise _refused(
                f"{probe!r} comes back as {back!r} (model {document['model'].get('type')}, "
                f"{', '.join(parts) or 'no normaliser'})"
            )
    if tokenizer.decode(tokenizer.encode(DECOMPOSED)) != DECOMPOSED:
        return ["the imported tokenizer puts decomposed characters together (NFC): such texts come back so"]
    return []
