"""The learned model among the checkpoints: after a kill the next run takes it and does not learn again.

Learning takes a third of a second per megabyte of its sample, and encoding a large corpus much longer; each
goes on from what is there (for encoding see `shards.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from stages.runtime.session import StageSession
from stages.tokenizer.sample import Sample
from stages.tokenizer.spec import TokenizerConfig

#: Settings that do not change what is learned; files count by their content.
_OTHERS = {"num_threads", "shard_tokens", "shuffle_seed", "extend", "import_from"}


def learning_key(config: TokenizerConfig, sample: Sample, base: bytes) -> str:
    """A hash of what decides on the model: settings, texts by their ids, the model that is extended."""
    about = {
        "settings": config.model_dump(mode="json", exclude=_OTHERS),
        "documents": sorted(sample.chosen.items()),
        "conversations": sorted(sample.drawn),
        "base": hashlib.sha256(base).hexdigest(),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def learned_once(learn: Callable[[], bytes], key: str, session: StageSession) -> bytes:
    """The model that an earlier run with this key learned, or else a new one, which is kept for later."""
    path = session.work_dir / "checkpoints" / f"learned-{key[:16]}.model"
    if path.is_file():
        session.log("going on with the vocabulary that an earlier run learned")
        return path.read_bytes()
    model = learn()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    unfinished.write_bytes(model)
    unfinished.replace(path)
    return model
