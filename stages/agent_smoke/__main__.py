"""`python -m stages.agent_smoke`: the stage as a program."""

from stages.agent_smoke.run import run
from stages.agent_smoke.spec import SPEC
from stages.runtime.main import main

if __name__ == "__main__":
    main(SPEC, run)
