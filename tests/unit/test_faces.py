"""Packages reach one another by their faces: what the `__init__.pyi` of each lists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mloc_dagster"
FACES = sorted(each.parent.name for each in PACKAGE.glob("*/__init__.pyi"))
OWN = {"training": "executors"}
"""Folders of unit tests that are not called like the package that they test."""

REPLACED = {
    "tests/contract/test_dagster_internals.py": {"fleet", "services"},
    "tests/contract/test_poison_rows.py": {"executors"},
    "tests/contract/test_reused_rows.py": {"executors"},
    "tests/contract/test_task_executors.py": {"executors"},
    "tests/e2e/test_dispatcher.py": {"dispatch"},
    "tests/e2e/test_embeddings.py": {"executors"},
    "tests/e2e/test_ledger_races.py": {"ledger"},
    "tests/e2e/test_vllm_engine.py": {"executors"},
    "tests/e2e/test_vllm_images.py": {"executors"},
    "tests/fsdp_process.py": {"executors"},
    "tests/gpu/test_vllm_gpu.py": {"executors"},
    "tests/unit/compile/test_vllm_check.py": {"executors"},
    "tests/unit/dispatch/test_submitted.py": {"fleet"},
    "tests/unit/executors/test_sleeping_models.py": {"fleet"},
    "tests/unit/results/test_input_order.py": {"data"},
    "tests/unit/training/test_arguments.py": {"schema"},
}
"""Tests that replace or time something inside a package, and so import one of its modules."""


@cache
def listed(package: str) -> dict[str, str]:
    """Returns the names of a face, each with the module that it comes from."""
    stub = ast.parse((PACKAGE / package / "__init__.pyi").read_text())
    return {
        alias.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }


def owner(path: Path) -> str | None:
    """Returns the package that a file may know from inside."""
    parts = path.relative_to(ROOT).parts
    if parts[0] == "mloc_dagster":
        return parts[1]
    if parts[:2] == ("tests", "unit"):
        return OWN.get(parts[2], parts[2])
    return None


def imports(path: Path) -> Iterator[tuple[str, str, str, int]]:
    """Yields what a file imports of packages with a face: package, module inside, name, line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            places = [(f"{node.module}", each.name) for each in node.names]
        elif isinstance(node, ast.Import):
            places = [(each.name, "") for each in node.names]
        else:
            continue
        for module, name in places:
            root, _, inside = module.partition(".")
            package, _, rest = inside.partition(".")
            if root == "mloc_dagster" and package in FACES:
                yield package, rest, name, node.lineno


def code(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "plugin" not in path.parts or path.name.startswith("test_"):
                yield path


@pytest.mark.parametrize("package", FACES)
def test_no_name_is_that_of_its_module(package: str) -> None:
    """Whoever imports the module first would find it on the package in place of the name."""
    assert [name for name, module in listed(package).items() if name == module] == []


@pytest.mark.parametrize("folder", ["mloc_dagster", "tests", "benchmarks", "scripts"])
def test_other_packages_are_reached_by_their_faces(folder: str) -> None:
    astray = [
        f"{path.relative_to(ROOT)}:{line}: {package}.{inside} {name}"
        for path in code(folder)
        for package, inside, name, line in imports(path)
        if package != owner(path)
        and package not in REPLACED.get(str(path.relative_to(ROOT)), ())
        and (inside or name not in {"", *listed(package)})
    ]
    assert astray == []


def test_docs_show_faces_only() -> None:
    inside = rf"^ *(?:from|import) mloc_dagster\.(?:{'|'.join(FACES)})\.\w.*$"
    docs = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    assert [line for doc in docs for line in re.findall(inside, doc.read_text(), re.M)] == []


@pytest.mark.parametrize("package", FACES)
def test_a_face_lists_what_is_there(package: str) -> None:
    gone = []
    for name, module in listed(package).items():
        path = PACKAGE / package / module.replace(".", "/")
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name not in names(source):
            gone.append(f"{module}.{name}")
    assert gone == []


def names(path: Path) -> set[str]:
    """Returns the names that a module has at its top level."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {each.asname or each.name for each in node.names}
        elif isinstance(node, ast.TypeAlias):
            found.add(node.name.id)
        else:
            found |= {
                each.id
                for each in ast.walk(node)
                if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            }
    return found


def test_a_face_lists_nothing_that_nobody_uses() -> None:
    used = {
        (package, name)
        for path in code("mloc_dagster", "tests", "benchmarks", "scripts")
        if path != Path(__file__)
        for package, inside, name, _ in imports(path)
        if not inside and package != owner(path)
    }
    shown = "\n".join(each.read_text() for each in (ROOT / "docs").glob("*.md"))
    shown += "\n".join(each.read_text() for each in (ROOT / "tests" / "plugin").rglob("*.py"))
    shown += (ROOT / "mloc" / "__init__.pyi").read_text()
    idle = [
        f"{package}.{name}"
        for package in FACES
        for name in listed(package)
        if (package, name) not in used and name not in shown
    ]
    assert idle == []
