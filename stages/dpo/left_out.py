"""Which rows a method cannot use, said; and an error where none is left."""

from __future__ import annotations

from collections.abc import Mapping

from stages.dpo.pairs import Pairs
from stages.dpo.single_answers import with_couples
from stages.dpo.spec import DpoConfig
from stages.runtime.session import StageSession

GIVE = "give corpus_prep pairs (prompt, chosen, rejected), conversations, or text with titles"
_NO_COUPLE = "there is no good and bad answer of your own among the held-out ones"
_HOLD_OUT_MORE = "[corpus_prep] validation_fraction = 0.2 holds out more"


def usable_pairs(
    config: DpoConfig, pairs: Mapping[str, Pairs], context_tokens: int, session: StageSession
) -> dict[str, Pairs]:
    """The pairs that `config.method` learns from and is judged by; says what is left out.

    For kto the held-out single answers become couples, so that pairs can be won; for the other methods single
    answers are left out. Raises ValueError when a split has nothing left.
    """
    _say(config, pairs, context_tokens, session)
    if config.method == "kto":
        pairs = _for_kto(pairs, session)
    for name, split in pairs.items():
        has_singles = config.method == "kto" and bool(split.singles)
        if not len(split) and not has_singles:
            raise ValueError(_why_none(config, name, split, context_tokens))
    return dict(pairs)


def _say(config: DpoConfig, pairs: Mapping[str, Pairs], context_tokens: int, session: StageSession) -> None:
    counts = ", ".join(f"{len(split):,} {name}" for name, split in pairs.items())
    session.log(f"preference pairs: {counts}")
    if too_long := sum(split.num_too_long for split in pairs.values()):
        session.warn(f"{too_long:,} rows have an answer that ends behind {context_tokens:,} tokens: left out")
    if equal := sum(split.num_equal for split in pairs.values()):
        session.warn(f"{equal:,} pairs have the same answer twice: left out")
    singles = sum(len(split.singles) for split in pairs.values())
    if singles and config.method == "kto":
        session.log(f"answers without a partner: {singles:,}")
    elif singles:
        session.warn(f"{singles:,} answers are without a partner: left out, [dpo] method = 'kto' takes them")


def _for_kto(pairs: Mapping[str, Pairs], session: StageSession) -> dict[str, Pairs]:
    """Single answers are the user's own, and then pairs that were derived for want of any are not needed,
    unless nothing else is there to be judged by."""
    own = dict(pairs)
    if pairs["train"].singles:
        own = {name: split.of_kind("own") for name, split in pairs.items()}
    _check_both_sides(own["train"])
    judged = with_couples(own["validation"])
    if not len(judged) and len(pairs["validation"]):
        own["validation"] = pairs["validation"]
        judged = with_couples(own["validation"])
        session.warn(f"{_NO_COUPLE}: derived pairs judge instead; {_HOLD_OUT_MORE}")
    if not len(judged) and own["validation"].singles:
        raise ValueError(f"{_NO_COUPLE}, and there is nothing else to judge kto by; {_HOLD_OUT_MORE}")
    if left_out := sum(len(split) - len(own[name]) for name, split in pairs.items()):
        session.log(f"{left_out:,} derived pairs are left out: there are answers of your own")
    return {**own, "validation": judged}


def _check_both_sides(train: Pairs) -> None:
    sides = {single.is_desirable for single in train.singles}
    if train.singles and not len(train) and len(sides) == 1:
        kind = "good" if True in sides else "bad"
        raise ValueError(
            f"all {len(train.singles):,} train answers are {kind}; kto needs both, label true and false"
        )


def _why_none(config: DpoConfig, name: str, split: Pairs, context_tokens: int) -> str:
    if split.singles and config.method != "kto":
        return (
            f"all {len(split.singles)} {name} rows are answers without a partner, and {config.method} learns "
            "from pairs; set [dpo] method = 'kto'"
        )
    if split.num_too_long:
        longer = f"{split.num_too_long} longer"
        return f"there are no {name} pairs of at most {context_tokens} tokens ({longer}); {GIVE}"
    if split.num_equal:
        return f"all {split.num_equal} {name} pairs have the same answer twice; {GIVE}"
    return f"there are no {name} pairs: the preferences have no row in that split; {GIVE}"
