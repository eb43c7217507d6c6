"""A distribution of the tests: a task type that takes tools, and repeats its rows, and a tool."""

from __future__ import annotations

from pathlib import Path

from tests.unit.executors.test_registry import lay_down

PLUG_IN = '''
from mloc_dagster.executors.echo import EchoExecutor
from mloc_dagster.schema.agent_tools import AgentTools
from mloc_dagster.schema.base import Block
from mloc_dagster.schema.task import RowSpec
from mloc_dagster.schema.task_type import TaskType

class Tooled(Block):
    tools: AgentTools = ()

class TooledSpec(RowSpec):
    """Repeats rows."""
    tooled: Tooled = Tooled()

TOOLED = TaskType(name="tooled", spec=TooledSpec, executor=EchoExecutor, kinds=("TooledTask",))

def lookup(word: str, *, language: str = "en", most: int = 5) -> str:
    """Looks a word up."""
    return f"{word} {language} {most}"
'''

TOOL = "\n[mloc_dagster.tools]\nmy_tools.lookup = tooled_plugin:lookup"

TEMPLATE = """\
apiVersion: mloc/v1
kind: TooledTask
metadata: {name: t}
spec:
  data: {type: list, items: [a]}
  tooled:
    tools:
"""

ITEM_LINE = 8
"""Where the first tool stands."""


def install(plug_ins: Path) -> None:
    """Installs the task type and the tool for a test."""
    (plug_ins / "tooled_plugin.py").write_text(PLUG_IN)
    lay_down(plug_ins, "mloc-tooled", f"tooled = tooled_plugin:TOOLED{TOOL}")


def template(*items: str) -> str:
    """Returns a template with tools, each an item of the list in YAML."""
    return TEMPLATE + "".join(f"      - {each}\n" for each in items)
