"""`python -m stages.vector_store`: run this stage as a program."""

from __future__ import annotations

from stages.runtime.main import main
from stages.vector_store.run import run
from stages.vector_store.spec import SPEC

if __name__ == "__main__":
    main(SPEC, run)
