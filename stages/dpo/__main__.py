"""`python -m stages.dpo`."""

from __future__ import annotations

from stages.dpo.run import run
from stages.dpo.spec import SPEC
from stages.runtime.main import main

if __name__ == "__main__":
    main(SPEC, run)
