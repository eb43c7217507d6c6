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


def short_rate(per_second: float) -> str:
    """Returns a rate with two or three digits: `0.8`, `31`, `4.1k`, `12k`, `1.2M`."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if per_second >= limit * 0.9995:
            scaled = per_second / limit
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return f"{per_second:.1f}" if per_second < 9.95 else f"{per_second:.0f}"


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
