"""No credential leaves the process in an error's text, and nothing else is lost."""

from __future__ import annotations

import pytest

from mloc_dagster.errors import DeliveryError, TransientError
from mloc_dagster.redaction import redact, redact_urls


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://user:pw@host:5/db is away", "postgresql://user:***@host:5/db is away"),
        ("redis://:pw@host", "redis://:***@host"),
        ("postgres://user:p@ss@host/db", "postgres://user:***@host/db"),
        ("https://ghtoken@host/x", "https://***@host/x"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("authorization: Basic dXNlcjpwYXNz", "authorization: Basic ***"),
        ("GET /x?api_key=abc&page=2", "GET /x?api_key=***&page=2"),
        ("https://h/f?X-Amz-Signature=dead&x=1", "https://h/f?X-Amz-Signature=***&x=1"),
        ('{"api_key": "a b", "rows": 3}', '{"api_key": "***", "rows": 3}'),
        ("{'password': 'a b'}", "{'password': '***'}"),
        ("AWS_SECRET_ACCESS_KEY=a/b+c", "AWS_SECRET_ACCESS_KEY=***"),
        ("OPENAI_API_KEY=plain", "OPENAI_API_KEY=***"),
        ("the key sk-abcdefgh1234 was refused", "the key *** was refused"),
        ("hf_abcdefghijk is not valid", "*** is not valid"),
        ("token=abc, then", "token=***, then"),
        ("error: password=abc x:token=d", "error: password=*** x:token=***"),
    ],
)
def test_credentials_are_masked(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens=64 tokens: 5",
        "the token is wrong",
        "unexpected token: }",
        "https://host:8080/path@2 is not there",
        "mail someone@example.org",
        "a bearer of news",
        "row 3: output is empty",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://bob:pw@host/x?a=1: away", "https://bob:***@host/x?a=1: away"),
        ("s3://token@host/x", "s3://***@host/x"),
        (
            "https://h/x?X-Amz-Credential=abc%2F1&X-Amz-Signature=def&a=1: no",
            "https://h/x?X-Amz-Credential=***&X-Amz-Signature=***&a=1: no",
        ),
        ("('https://h/x?sig=a%2Fb=', 3)", "('https://h/x?sig=***', 3)"),
        ("cached::https://h/x?access_token=abc", "cached::https://h/x?access_token=***"),
    ],
)
def test_addresses_lose_their_credentials(text: str, expected: str) -> None:
    assert redact_urls(text) == expected
    assert redact_urls(expected) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "spec.token: unknown key; did you mean 'tokens'?",
        "secret_key=abc is no URL's",
        "https://host/x?page=2&max_tokens=5",
        "what is it? token=5",
    ],
)
def test_other_text_than_addresses_stays(text: str) -> None:
    assert redact_urls(text) == text


def test_no_error_of_mloc_shows_an_addresss_credentials() -> None:
    assert str(TransientError("s3://key:secret@host/x: away")) == "s3://key:***@host/x: away"
    assert "secret" not in repr(DeliveryError("https://h/hook?signature=secret did not take it"))
    assert str(TransientError()) == ""
