"""Budgets that nothing could keep, and prices that contradict each other, are refused."""

from __future__ import annotations

import pytest

from mloc_dagster.compile.compiled import CompiledTemplate
from mloc_dagster.compile.compiler import compile_document
from mloc_dagster.compile.loader import parse_documents
from mloc_dagster.errors import TemplateError

HEAD = """apiVersion: mloc/v1
metadata: {name: t}
%s
  data: {type: list, items: [a]}
"""
ECHO = "kind: EchoTask\nspec:\n"
AGENT = """kind: AgentTask
spec:
  model: {source: {type: builtin, identifier: tiny-chat}}
  agent: {budget: {cost: 3}}
"""
MODEL = """kind: InferenceTask
spec:
  model: {source: {type: builtin, identifier: tiny-chat}}
"""
PRICES = "  resources: {cost_per_token: {input: 0.00000015, output: 0.0000006}}\n"


def compiled(text: str) -> CompiledTemplate:
    return compile_document(parse_documents(HEAD % text, "t.yaml")[0])


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (ECHO + "  budget: {cost: 3}", "5:12", "nothing tells what the task costs: give resources"),
        (AGENT, "6:20", "nothing tells what the task costs: give resources"),
        (ECHO + "  budget: {tokens: -1}", "5:20", "expected at least 1, got -1"),
        (ECHO + "  budget: {seconds: 0}", "5:21", "expected more than 0.0, got 0"),
        (ECHO + "  budget: {token: 9}", "5:12", "did you mean 'tokens'"),
        (
            ECHO + "  resources: {cost_per_hour: 2, cost_per_token: {input: 1, output: 1}}",
            "5:33",
            "a task is paid for by its tokens or by its workers' time",
        ),
        (
            ECHO + "  resources: {cost_per_hour: 2}\n  budget: {per_row: {cost: 1}}",
            "6:22",
            "what a row costs is known in time only where tokens have a price",
        ),
        (
            MODEL + "  budget: {per_row: {seconds: 1}}",
            "6:22",
            "a task of type 'inference' cannot end a row by its seconds; limits of its rows: cost, "
            "tokens",
        ),
    ],
)
def test_what_is_refused(text: str, place: str, message: str) -> None:
    with pytest.raises(TemplateError) as refused:
        compiled(text)
    (found,) = refused.value.diagnostics
    assert f"t.yaml:{place}:" in str(refused.value)
    assert message in found.message


@pytest.mark.parametrize(
    "text",
    [
        ECHO + "  budget: {tokens: 9, seconds: 2.5, per_row: {tokens: 1, seconds: 1}}",
        ECHO + "  resources: {cost_per_hour: 2}\n  budget: {cost: 1}",
        ECHO + PRICES + "  budget: {cost: 1, per_row: {cost: 1}}",
        MODEL + PRICES + "  budget: {cost: 1, per_row: {cost: 1, tokens: 9}}",
        AGENT + PRICES,
        AGENT + "  resources: {cost_per_hour: 2}",
        ECHO + "  resources: {cost_per_hour: null, cost_per_token: {input: 1.0e-7, output: 1e-7}}",
    ],
)
def test_what_is_kept(text: str) -> None:
    assert not compiled(text).warnings
