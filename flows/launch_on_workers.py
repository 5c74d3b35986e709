"""Give each stage to whichever worker of a Prefect work pool is free, on any host that reaches the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from flows.job import Backend, Job, OnEvent, notice
from flows.prefect_rest import PrefectRest
from flows.shared_build import Sharing
from stages.runtime.errors import UserError
from stages.runtime.spec import StageConfig, StageSpec
from stages.runtime.store import Artifact, Store

DEPLOYMENT = "run-stage/any"


class WorkersBackend:
    """Stages as flow runs of a work pool; a worker starts them by the `inner` backend.

    A stage that reads from outside the store runs here: its files lie on this host and perhaps on no other.
    """

    elsewhere = True

    def __init__(self, inner: Backend, limits: Sequence[str] = ()) -> None:
        self._inner = inner
        self._limits = tuple(limits)
        self.name = "workers" if inner.name == "process" else f"workers-{inner.name}"

    def packages(self, spec: StageSpec) -> Mapping[str, str]:
        """Every host must have what this one has; one that has not refuses the stage."""
        return self._inner.packages(spec)

    async def check(self, to_run: Callable[[], Sequence[StageSpec]]) -> None:
        """The server knows the deployment, and what runs here can. Workers may come later."""
        await self._inner.check(lambda: [spec for spec in to_run() if _runs_here(spec)])
        if (url := os.environ.get("PREFECT_API_URL")) is None:
            return  # a plan, which starts no server
        if not PrefectRest(url).exists(f"/deployments/name/{DEPLOYMENT}"):
            raise no_deployment(url)

    async def clear(self, store: Store) -> None:
        """Stages on other hosts go on without their controller, and the next build takes what they make."""
        await self._inner.clear(store)

    async def launch(self, job: Job, on_event: OnEvent) -> Artifact:
        """Have a worker run one stage and return its artifact. Raises the stage's own error."""
        if _runs_here(job.spec, job.config):
            return await self._launch_here(job, on_event)
        from flows.stage_order import order_of  # these two import Prefect
        from flows.worker_runs import run_on_a_worker

        order = order_of(job, "docker" if self._inner.name == "docker" else "process", self._limits)
        return await run_on_a_worker(order, job, on_event)

    async def _launch_here(self, job: Job, on_event: OnEvent) -> Artifact:
        from flows.gpu_slots import gpu_slot  # imports Prefect

        def say(text: str) -> None:
            on_event(notice(text))

        async def launch(asked: Job) -> Artifact:
            async with gpu_slot(asked.spec, asked.config, say) as gpu:
                with_gpu = replace(asked, environment={**asked.environment, **gpu})
                return await self._inner.launch(with_gpu, on_event)

        artifact, _ = await Sharing(job.store, say).make(job, launch)
        return artifact


def no_deployment(url: str) -> UserError:
    """The server does not know what runs stages on workers."""
    return UserError(
        f"the Prefect server at {url} has no deployment {DEPLOYMENT}",
        hint="glassworks up starts one that has it; for one elsewhere, set PREFECT_API_URL",
    )


def _runs_here(spec: StageSpec, config: StageConfig | None = None) -> bool:
    """A stage that can use a GPU goes to a worker, unless its settings name files that lie here."""
    if spec.external_inputs is None or spec.gpu == "none":
        return spec.external_inputs is not None
    return config is not None and bool(spec.external_inputs(config))
