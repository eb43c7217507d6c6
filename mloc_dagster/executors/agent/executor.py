"""The agent executor: a shard's rows as trajectories over one engine."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors.agent.blocks import Blocks
from mloc_dagster.executors.agent.counts import Counts
from mloc_dagster.executors.agent.replay import Recording
from mloc_dagster.executors.agent.traces import Traces
from mloc_dagster.executors.agent.turns import TurnQueue
from mloc_dagster.executors.base import ShardContext, ShardInput
from mloc_dagster.executors.calls import between_calls
from mloc_dagster.executors.engines.choice import choose_engine
from mloc_dagster.executors.engines.protocol import Engine, Replies
from mloc_dagster.executors.inference import InferenceExecutor
from mloc_dagster.executors.retrieval.named_search import search_passages
from mloc_dagster.planning import shard_key
from mloc_dagster.results import InputRow, Steps, failed_row
from mloc_dagster.schema import AgentSpec, AgentTool, ModelSpec, ToolOrWorker
from mloc_dagster.tools import check_tools, open_toolsets

# Whoever builds a task's job asks this executor for the key of its model: pydantic-ai takes
# longer to import than all the rest, and is imported where trajectories run.
if TYPE_CHECKING:
    from pydantic_ai import Agent
    from pydantic_ai.toolsets import AbstractToolset

    from mloc_dagster.executors.agent.trajectory import Trajectory


class AgentExecutor(InferenceExecutor):
    """Works on each row with a model and its tools, on the engine that the task gets."""

    def load(self, spec: ModelSpec) -> Engine:
        """Loads the model, once the tools are known to be there.

        Raises:
            TerminalError: If a tool cannot be had here, such as a search without its key.
            TransientError: As for inference.
        """
        if isinstance(spec, AgentSpec):
            check_tools(spec.agent.tools)
        return super().load(spec)

    def run(  # pyright: ignore[reportIncompatibleMethodOverride]  (its specs are agents')
        self, shard: ShardInput, spec: AgentSpec, model: Engine, context: ShardContext
    ) -> None:
        """Works on every row of the shard, emitting each as it ends.

        Raises:
            TaskCancelled: If the task was asked to stop.
            TransientError: If the engine is lost and another attempt may help.
            InputError: If the task that is replayed is not there.
        """
        check_tools(spec.agent.tools)  # a warm model was loaded for other tools
        recorded = spec.agent.recorded if spec.agent.replay == "strict" else None
        recording = None if recorded is None else Recording(recorded, shard.index)
        context.log(f"engine: {model.label} on {model.device}: {choose_engine(spec).reason}")
        context.log(f"model: {model.name}, revision {self.revision(model)}")
        loop = asyncio.new_event_loop()
        queue = TurnQueue(model, loop, context.emit)
        rows = _Rows(shard, spec, model, context, queue, recording)
        # The thread has this one's context: what the task may reach is in it.
        run = partial(contextvars.copy_context().run, _run, loop, queue, rows)
        thread = threading.Thread(target=run, name="mloc-agent")
        with between_calls(model, context.cancelled):
            thread.start()
            try:
                replies = Replies(queue.done, queue.failed, context.cancelled, context.log)
                model.run(queue, replies)
            except BaseException:
                loop.call_soon_threadsafe(rows.stop)
                raise
            finally:
                thread.join()
                queue.emit_finished()
                loop.close()


def _run(loop: asyncio.AbstractEventLoop, queue: TurnQueue, rows: _Rows) -> None:
    """Runs the trajectories in a thread of their own."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(rows.run())
    except asyncio.CancelledError:
        queue.close(TaskCancelled("stopped while trajectories were under way"))
    except BaseException as error:  # noqa: BLE001  raised in the engine's thread
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        queue.close(error)
    else:
        queue.close()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())


class _Rows:
    """The rows of a shard, as many at a time as the template says."""

    def __init__(
        self,
        shard: ShardInput,
        spec: AgentSpec,
        engine: Engine,
        context: ShardContext,
        queue: TurnQueue,
        recording: Recording | None,
    ) -> None:
        self._shard = shard
        self._spec = spec
        self._engine = engine
        self._context = context
        self._queue = queue
        self._known = {} if context.journal is None else context.journal.take_over()
        self._blocks = Blocks(spec.inference)
        self._counts = Counts(context.count, self._known.values())
        self._traces = Traces(
            context.save,
            shard.task_id,
            shard_key(shard.index),
            engine.name,
            engine.label,
            spec,
        )
        self._recording = recording
        self._all: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Works on all rows."""
        from mloc_dagster.executors.agent.workers import agent_of

        self._all = asyncio.current_task()
        async with AsyncExitStack() as around:
            around.enter_context(self._traces)
            given = self._spec.agent
            agent = agent_of(given, "agent", await self._toolsets(around, given.tools))
            rows = enumerate(self._shard.rows)
            workers = min(self._spec.agent.concurrency, self._shard.count)
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work(agent, rows))

    def stop(self) -> None:
        """Ends all trajectories; their steps so far are in the journal."""
        if self._all is not None:
            self._all.cancel()

    async def _work(
        self, agent: Agent[Trajectory, Any], rows: Iterator[tuple[int, InputRow]]
    ) -> None:
        from mloc_dagster.executors.agent.trajectory import Trajectory

        for place, row in rows:
            if row.error is not None:
                self._queue.finish(failed_row(row, row.error, self._engine.label))
                continue
            trajectory = Trajectory(
                row,
                place,
                self._spec,
                self._queue,
                self._context,
                self._known.pop(row.index, Steps()),
                self._shard.seed,
                self._blocks,
                self._counts,
                self._shard.task_id,
                None if self._recording is None else self._recording.of(row.index),
            )
            done = await trajectory.run(agent, self._engine.name, self._engine.label)
            self._traces.add(done, trajectory.steps, trajectory.tools)
            self._queue.finish(done)

    async def _toolsets(
        self, around: AsyncExitStack, tools: Sequence[AgentTool]
    ) -> list[AbstractToolset[Trajectory]]:
        """Returns tools as toolsets that are open for as long as the shard is worked on."""
        from mloc_dagster.executors.agent.journaled_tools import JournaledTools
        from mloc_dagster.executors.agent.workers import worker_toolset

        workers = {
            each.tool_name or "": each.agent
            for each in tools
            if isinstance(each, ToolOrWorker) and each.agent is not None
        }
        opened = open_toolsets(
            [each for each in tools if each.tool_name not in workers],
            tool_timeout=self._spec.agent.tool_timeout,
            taken=workers,
            log=self._context.log,
            passages=search_passages,
        )
        found: list[AbstractToolset[Trajectory]] = [*await around.enter_async_context(opened)]
        for name, worker in workers.items():
            below = await self._toolsets(around, worker.tools)
            found.append(worker_toolset(worker, name, below))
        return [JournaledTools(each) for each in found]
