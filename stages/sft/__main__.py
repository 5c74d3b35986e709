"""`python -m stages.sft`."""

from __future__ import annotations

from stages.runtime.main import main
from stages.sft.run import run
from stages.sft.spec import SPEC

if __name__ == "__main__":
    main(SPEC, run)
