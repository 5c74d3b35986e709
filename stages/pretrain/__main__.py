"""`python -m stages.pretrain`."""

from stages.pretrain.run import run
from stages.pretrain.spec import SPEC
from stages.runtime.main import main

if __name__ == "__main__":
    main(SPEC, run)
