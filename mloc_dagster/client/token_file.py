"""The file of the API's tokens, `MLOC_API_TOKEN_FILE`."""

from __future__ import annotations


def tokens_in(text: str) -> dict[str, str]:
    """Returns the tokens of a file, each with the name by which the access log calls it.

    Args:
        text: A token a line, and a name after it if it has one; without one it is called by the
            number of its line. Empty lines and those that begin with `#` mean nothing.
    """
    tokens: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        token, _, name = line.strip().partition(" ")
        if token and not token.startswith("#"):
            tokens.setdefault(token, name.strip() or f"line-{number}")
    return tokens
