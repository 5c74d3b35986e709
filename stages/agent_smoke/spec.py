"""What agent_smoke reads, writes and can be told."""

from __future__ import annotations

from pydantic import Field

from data_contracts.agent import AGENT_RESULTS, AGENT_SCENARIOS, AGENT_TRACE
from data_contracts.documents import DOCUMENTS
from data_contracts.quantized_checkpoint import QUANTIZED_CHECKPOINT
from data_contracts.vector_store import VECTOR_STORE
from stages.runtime.spec import Read, StageConfig, StageSpec


class AgentSmokeConfig(StageConfig):
    """How the scenarios are run, and when the stage fails."""

    minimum_success_fraction: float = Field(default=0.5, ge=0.0, le=1.0)
    """The stage fails when fewer scenarios with seen phrasings succeed; 0 only reports."""
    max_scenarios: int = Field(default=160, ge=1)
    """At most so many scenarios run, taken in turn from each family and phrasing."""
    max_steps: int = Field(default=5, ge=1)
    """Turns that the model may take for one scenario, tool calls and the answer together."""
    max_new_tokens: int = Field(default=96, ge=48)
    """Tokens of one turn; a tool call that is begun is also ended within them."""
    num_samples: int = Field(default=6, ge=0)
    """Failing scenarios to show in the report, next to half as many that succeed."""


SPEC = StageSpec(
    name="agent_smoke",
    version=1,
    config=AgentSmokeConfig,
    image="torch",
    reads={
        "scenarios": Read("corpus_prep", "scenarios", AGENT_SCENARIOS),
        "documents": Read("corpus_prep", "documents", DOCUMENTS),
        "model": Read("quantize", "int8", QUANTIZED_CHECKPOINT),
        "store": Read("vector_store", "store", VECTOR_STORE),
    },
    writes={"traces": AGENT_TRACE, "results": AGENT_RESULTS},
    summary="run a tool-using agent on the quantized model against scenarios with expected outcomes",
)
