"""Numbers and texts as people read them."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """Returns `1 row`, `1,024 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rate(per_second: float) -> str:
    """Returns a rate with about three digits: `0.84`, `31.2`, `4,096`."""
    if per_second >= 100:
        return f"{per_second:,.0f}"
    return f"{per_second:.1f}" if per_second >= 10 else f"{per_second:.2f}"


def duration(seconds: float) -> str:
    """Returns `8.4 s` below a minute, else `3:07`, or `1:02:03`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours}:{minutes:02}:{whole % 60:02}"
    return f"{minutes}:{whole % 60:02}"


def shorten(text: str, width: int) -> str:
    """Returns `text` on one line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"
