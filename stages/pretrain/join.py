"""`python -m stages.pretrain.join`: the processes of another machine, for a training in several nodes.

    python -m stages.pretrain.join --config c.json --input tokens=DIR --input tokenizer=DIR --node-rank 1

The stage itself runs on the first node, which `rendezvous` names; it has the store and the checkpoints. Give
this node the same settings and the same inputs; nothing is written here but in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from stages.pretrain.launch import processes_here, run_workers
from stages.pretrain.mistakes import explained
from stages.pretrain.spec import SPEC, PretrainConfig
from stages.runtime.errors import GlassworksError


def main(arguments: Sequence[str] | None = None) -> None:
    """Take part until the training is over, and end the process with the exit codes of a stage."""
    parser = argparse.ArgumentParser(prog="python -m stages.pretrain.join")
    parser.add_argument("--config", type=Path, required=True, help="the settings of the stage, as JSON")
    parser.add_argument("--input", action="append", default=[], metavar="ROLE=DIR")
    parser.add_argument("--node-rank", type=int, required=True, help="1 to nodes - 1")
    options = parser.parse_args(arguments)
    inputs = {role: Path(folder) for role, _, folder in (pair.partition("=") for pair in options.input)}
    try:
        config = cast(PretrainConfig, SPEC.parse_config(json.loads(options.config.read_text("utf-8"))))
        with explained():
            count = processes_here(config)
        with tempfile.TemporaryDirectory() as work:
            words = ["--config", str(options.config), "--work", work]
            run_workers(config, inputs, words, Path(work), count, options.node_rank)
    except GlassworksError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
