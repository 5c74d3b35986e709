"""`python -m stages.dpo`."""

from __future__ import annotations

from stages.runtime.main import main
from stages.dpo.run import run
from stages.dpo.spec import SPEC

if __name__ == "__main__":
    main(SPEC, run)
