"""`python -m stages.corpus_prep`: see stages/runtime/main.py for the options."""

from stages.corpus_prep.run import run
from stages.corpus_prep.spec import SPEC
from stages.runtime.main import main

if __name__ == "__main__":
    main(SPEC, run)
