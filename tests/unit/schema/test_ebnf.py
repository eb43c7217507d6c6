"""Grammars that xgrammar refuses are known before a model runs; the others pass."""

from __future__ import annotations

import pytest

from mloc_dagster.schema.answer_forms import grammar_problem

BAD = {
    "root ::= ": "line 1: nothing stands behind '::='",
    'root ::= "a" |': "line 1: nothing stands behind '|'",
    'root ::= "a" | \nb ::= "b"': "line 1: nothing stands behind '|'",
    'root ::= ( | "a")': "line 1: nothing stands behind '('",
    'root ::= "a")': "line 1: a ')' closes nothing",
    'root ::= ("a"\nb ::= "b"': "a '(' is not closed",
    "root ::= [a-z": "a character class without its ']'",
    "root ::= bar": "line 1: there is no rule 'bar'",
    'root ::= "a"\nroot ::= "b"': "line 2: rule 'root' was defined in line 1",
    'Root ::= "a"': "did you mean 'Root'?",
    "hello world": "there is no rule 'root ::= …'",
    'root = "a"': "line 1: '=', which no grammar has there",
}
GOOD = [
    'root ::= "a"*\n',
    '# c\nroot ::= "a" # d "\n',
    'root ::= root "a" | "b"',
    "root ::= ()",
    'root ::= "a"{2,3} ("b"+ | [^\\]"x-]?) ""',
    'root ::= a-b c.d\na-b ::= "\\"\\n"\nc.d ::= [0-9]',
    'root ::= (\n  "a"\n  | b\n)\nb ::=\n  "b"',
]


@pytest.mark.parametrize(("grammar", "message"), BAD.items())
def test_what_is_wrong_is_told_with_its_line(grammar: str, message: str) -> None:
    assert message in (grammar_problem(grammar) or "")


@pytest.mark.parametrize("grammar", GOOD)
def test_sound_grammars_pass(grammar: str) -> None:
    assert grammar_problem(grammar) is None


@pytest.mark.parametrize("grammar", [*BAD, *GOOD])
def test_xgrammar_thinks_the_same(grammar: str) -> None:
    xgrammar = pytest.importorskip("xgrammar")
    try:
        xgrammar.Grammar.from_ebnf(grammar)
    except RuntimeError:
        assert grammar in BAD
    else:
        assert grammar in GOOD
