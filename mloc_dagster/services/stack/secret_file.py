"""Files and URLs that hold a password."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

_PASSWORD_BYTES = 24


def write_secret(path: Path, text: str) -> None:
    """Replaces a file that only its owner may read; readers see the old or the new text."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


def password_in(path: Path) -> str:
    """Returns the password of a file, which is made up on the first call."""
    if path.exists():
        return path.read_text(encoding="utf-8").strip()
    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    write_secret(path, password)
    return password


def masked(url: str) -> str:
    """Returns the URL with `***` for its password."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    user, host = parts.username or "", parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{user}:***@{host}").geturl()
