"""`python -m stages.tokenizer`."""

from __future__ import annotations

from stages.runtime.main import main
from stages.tokenizer.run import run
from stages.tokenizer.spec import SPEC

if __name__ == "__main__":
    main(SPEC, run)
