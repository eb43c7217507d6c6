"""The face of the tools is light: what is heavy is loaded when tools are opened."""

from __future__ import annotations

import subprocess
import sys


def test_the_face_loads_no_library_of_agents() -> None:
    code = (
        "import sys\n"
        "from mloc_dagster.tools import FailedCall, check_tools, open_toolsets, tool_functions\n"
        "from mloc_dagster.schema import AgentTool\n"
        "check_tools([AgentTool.model_validate(each) for each in\n"
        "    ({'python': {}}, {'entry_point': 'calculator'}, {'http': {'allow': ['a.org']}})])\n"
        "heavy = {'pydantic_ai', 'pydantic_monty', 'fastmcp', 'mcp', 'httpx2', 'ddgs', 'httpx'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
