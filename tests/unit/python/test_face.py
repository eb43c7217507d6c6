"""What `import mloc` brings, and what it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mloc

STUB = Path(mloc.__file__).with_suffix(".pyi")


def test_every_name_of_the_stub_is_there_and_no_other() -> None:
    listed = {"session"} | {
        alias.asname or alias.name
        for node in ast.parse(STUB.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {each for each in dir(mloc) if not each.startswith("_")} == {
        each for each in listed if not each.startswith("_")
    }
    assert all(getattr(mloc, each) is not None for each in listed)
    assert mloc.session is mloc.Session


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="runn"):
        mloc.runn  # noqa: B018


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = "{'dagster', 'pyarrow', 'numpy', 'torch', 'pandas', 'matplotlib', 'httpx'}"
    program = f"import sys, mloc; dir(mloc); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
