"""Agents as tools of another one: each call is a trajectory of its own, on the same engine.

Its turns go through the same queue, and are noted in the row's journal under the call, so that a
worker process which takes over goes on in the middle of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_ai import Agent, ModelRetry, RunContext, Tool
from pydantic_ai.output import StructuredDict
from pydantic_ai.toolsets import AbstractToolset, FunctionToolset

from mloc_dagster.executors.agent.engine_model import EngineModel
from mloc_dagster.executors.agent.trajectory import AGENT_EFFECT, Trajectory
from mloc_dagster.schema import AgentLoop, Worker
from mloc_dagster.tools import FailedCall


def agent_of(
    given: AgentLoop, name: str, toolsets: list[AbstractToolset[Trajectory]]
) -> Agent[Trajectory, Any]:
    """Returns the loop of an agent.

    Args:
        given: What the template says of it.
        name: What it is called.
        toolsets: What it may call.
    """
    schema = given.output_schema
    agent: Agent[Trajectory, Any] = Agent(
        deps_type=Trajectory,
        output_type=str if schema is None else StructuredDict(dict(schema), name="answer"),
        instructions=given.instructions,
        toolsets=toolsets,
        retries=given.retries,
        name=name,
    )
    if schema is not None:
        agent.output_validator(_fits(schema))
    return agent


def worker_toolset(
    worker: Worker, name: str, toolsets: list[AbstractToolset[Trajectory]]
) -> AbstractToolset[Trajectory]:
    """Returns the toolset whose only tool asks a worker.

    Args:
        worker: The worker.
        name: What the calling model calls it.
        toolsets: What the worker may call.
    """
    agent = agent_of(worker, name, toolsets)

    async def ask(ctx: RunContext[Trajectory], task: str) -> str:
        """Asks the worker.

        Args:
            ctx: The call.
            task: What it has to do, with all that it has to know: it sees nothing else.
        """
        trajectory = ctx.deps.of_worker(worker, ctx.tool_call_id or "", task)
        model = EngineModel(trajectory.ask, ctx.model.model_name, ctx.model.system)
        ending = await trajectory.carried_on(agent, model)
        return ending.output if ending.error is None else FailedCall(f"Error: {ending.error}")

    tool = Tool(ask, takes_ctx=True, name=name, description=worker.description)
    return FunctionToolset([tool]).with_metadata(effect=AGENT_EFFECT)


def _fits(schema: Any) -> Callable[[Any], Any]:
    """Returns a check that an answer fits a JSON Schema, which the model is told of."""
    from jsonschema.validators import validator_for

    validator = validator_for(schema)(schema)

    def check(output: Any) -> Any:
        wrong = [f"{each.json_path}: {each.message}" for each in validator.iter_errors(output)]
        if wrong:
            raise ModelRetry("; ".join(wrong[:5]))
        return output

    return check
