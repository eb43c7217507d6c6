"""Credentials masked in text that leaves the process: errors quote URLs, headers and settings."""

from __future__ import annotations

import re

MASK = "***"

_SCHEME = r"([a-z][a-z0-9+.-]{0,30}://)"

# A URL's password first, so that what follows cannot cut it in half. Nothing here backtracks over
# long text: errors quote model outputs too.
_IN_URLS: tuple[tuple[re.Pattern[str], str], ...] = (
    # scheme://user:password@host: the user's name may stay. A password may hold an @ of its own:
    # the last one before the path ends it.
    (re.compile(_SCHEME + r"([^\s/:@'\"]*):([^\s/'\"]*)@", re.IGNORECASE), r"\1\2:***@"),
    # scheme://token@host
    (re.compile(_SCHEME + r"[^\s/:@'\"]+@", re.IGNORECASE), r"\1***@"),
)

# A header's credentials, whatever its name.
_SCHEMES = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE)

# A parameter of a URL: ?name=value or &name=value.
_PARAMETER = re.compile(r"""([?&;]([\w.%-]{1,100})=)[^\s&;#'"\\<>()\[\]{}]+""")

# The name and the sign of name=value, name: value and "name": "value"; then the value.
_NAMED = re.compile(r"""(?<![\w.-])([\w.-]++)["']?\s{0,8}(?:=>|[=:])\s{0,8}""")
_VALUE = re.compile(
    r""""[^"]*"|'[^']*'|(?!(?:bearer|basic)\s\*)[^\s,;&"'{}()\[\]]+""", re.IGNORECASE
)

# What a name must hold for its value to be secret; `max_tokens` is no such name.
_TELLING = re.compile(
    r"api[_-]?key|access[_-]?key|secret|passw(?:or)?d|pwd|(?<![A-Za-z])token(?![A-Za-z])"
    r"|credential|signature|(?<![A-Za-z])sig(?![A-Za-z])|authorization|private[_-]?key",
    re.IGNORECASE,
)

# Keys that show what they are by their first letters, wherever they stand.
_KEYS = re.compile(
    r"\b(?:sk-[A-Za-z0-9_-]{8,}|hf_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{16,}"
    r"|github_pat_\w{16,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{8,}|A(?:KI|SI)A[A-Z0-9]{12,}"
    r"|AIza[\w-]{20,}|eyJ[\w-]{8,}\.[\w-]{4,}\.[\w-]*)"
)


def redact(text: str) -> str:
    """Returns `text` with what looks like a credential replaced by `***`.

    Covers passwords and tokens in URLs, `Authorization` values, values whose name says that they
    are secret, and the common providers' keys. Doing it twice changes nothing.
    Halves of characters, which no JSON can carry, become question marks.
    """
    text = redact_urls(text.encode(errors="replace").decode())
    return _KEYS.sub(MASK, _mask_named(_SCHEMES.sub(r"\1 ***", text)))


def redact_urls(text: str) -> str:
    """Returns `text` with the credentials of its URLs replaced by `***`, and nothing else changed.

    Covers user names with passwords, tokens in their place, and parameters whose name says that
    they are secret, such as `X-Amz-Signature`.
    """
    if "://" not in text:
        return text
    for pattern, replacement in _IN_URLS:
        text = pattern.sub(replacement, text)
    return _PARAMETER.sub(_mask_parameter, text)


def _mask_parameter(found: re.Match[str]) -> str:
    return f"{found[1]}{MASK}" if _TELLING.search(found[2]) else found[0]


def _mask_named(text: str) -> str:
    parts: list[str] = []
    done = 0
    for name in _NAMED.finditer(text):
        if name.start() < done or not _TELLING.search(name[1]):
            continue
        value = _VALUE.match(text, name.end())
        if value is not None:
            quote = value[0][0] if value[0][0] in "\"'" else ""
            parts += [text[done : name.end()], quote, MASK, quote]
            done = value.end()
    return "".join([*parts, text[done:]])
