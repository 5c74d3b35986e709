"""`python -m stages.quantize`: the stage as a program."""

from stages.quantize.run import run
from stages.quantize.spec import SPEC
from stages.runtime.main import main

if __name__ == "__main__":
    main(SPEC, run)
