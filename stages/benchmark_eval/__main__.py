"""`python -m stages.benchmark_eval`: the stage as a program."""

from stages.benchmark_eval.run import run
from stages.benchmark_eval.spec import SPEC
from stages.runtime.main import main

if __name__ == "__main__":
    main(SPEC, run)
