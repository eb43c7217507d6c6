"""Split arithmetic: `train[:10%]+test[-5:]` → ranges of rows. Pure.

Means what `datasets.ReadInstruction` means, so a template gives the same rows whether they come
from the hub or from a file.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator

from mloc_dagster.errors import DataError

Rounding = Literal["closest", "pct1_dropremainder"]

_PART = re.compile(
    r"(?P<split>\w+(?:\.\w+)*)?"
    r"(?P<slice>\["
    r"(?:(?P<start>-?[\d_]+)(?P<start_percent>%)?)?"
    r":"
    r"(?:(?P<stop>-?[\d_]+)(?P<stop_percent>%)?)?"
    r"\])?"
    r"(?:\((?P<rounding>[^)]*)\))?"
)
_PLUS = re.compile(r"\s*\+\s*")
_ROUNDINGS = ("closest", "pct1_dropremainder")
_EXAMPLES = (
    "expected a form such as 'train', 'train[:200]', 'train[10%:20%]', '[-50:]' "
    "or 'train[:5]+test[:5]'"
)


@dataclass(frozen=True, slots=True)
class SplitPart:
    """One slice of one split.

    Attributes:
        split: The split's name; None when the text names none (`[-50:]`).
        start: Lower bound as written; negative counts from the end.
        stop: Upper bound as written.
        percent: Whether the bounds are percents of the split.
        rounding: How a percent becomes a row number.
    """

    split: str | None
    start: int | None = None
    stop: int | None = None
    percent: bool = False
    rounding: Rounding = "closest"

    @property
    def needs_total(self) -> bool:
        """Whether the slice cannot be taken without knowing how long the split is."""
        return self.percent or (self.start or 0) < 0 or (self.stop or 0) < 0

    @property
    def always_empty(self) -> bool:
        """Whether the slice has no rows, however long the split is."""
        start, stop = self.start or 0, self.stop
        if self.percent:
            start = start + 100 if start < 0 else start
            stop = 100 if stop is None else stop + 100 if stop < 0 else stop
        if stop is None:
            return False
        return stop == 0 or ((start < 0) == (stop < 0) and start >= stop)

    def resolve(self, total: int) -> range:
        """Returns the rows meant, of a split that has `total`.

        Raises:
            DataError: If `pct1_dropremainder` is asked of fewer than 100 rows.
        """
        start = 0 if self.start is None else self._place(self.start, total)
        stop = total if self.stop is None else self._place(self.stop, total)
        return range(min(start, total), min(stop, total))

    def _place(self, bound: int, total: int) -> int:
        if self.percent:
            bound = self._from_percent(bound, total)
        return max(total + bound, 0) if bound < 0 else bound

    def _from_percent(self, bound: int, total: int) -> int:
        if self.rounding == "closest":
            # `round` to even over a float, as `datasets` has it: the same row at every boundary.
            return round(bound * total / 100.0)
        if total < 100:
            raise DataError(f"pct1_dropremainder needs at least 100 rows; the split has {total}")
        return bound * (total // 100)

    def __str__(self) -> str:
        unit = "%" if self.percent else ""
        text = self.split or ""
        if self.start is not None or self.stop is not None or self.split is None:
            start, stop = (
                "" if bound is None else f"{bound}{unit}" for bound in (self.start, self.stop)
            )
            text += f"[{start}:{stop}]"
        return text if self.rounding == "closest" else f"{text}({self.rounding})"


def parse_split(text: str) -> tuple[SplitPart, ...]:
    """Reads a split as a template has it.

    Raises:
        DataError: If the text is not a split, or means no rows whatever the dataset holds.
    """
    parts = tuple(_parse_part(part, text) for part in _PLUS.split(text.strip()))
    # One empty part among others is how folds are written: `train[:0%]+train[10%:]`.
    if all(part.always_empty for part in parts):
        raise DataError(f"split {text!r} is always empty, however long the dataset is; {_EXAMPLES}")
    return parts


def _parse_part(part: str, whole: str) -> SplitPart:
    match = _PART.fullmatch(part)
    if match is None or not part or not (match["split"] or match["slice"]):
        raise DataError(f"split {whole!r} cannot be read; {_EXAMPLES}")
    percent = bool(match["start_percent"] or match["stop_percent"])
    bounds = [_bound(match[name], whole, percent=percent) for name in ("start", "stop")]
    return SplitPart(
        split=match["split"],
        start=bounds[0],
        stop=bounds[1],
        percent=percent,
        rounding=_rounding(match["rounding"], whole, percent=percent),
    )


def _bound(digits: str | None, whole: str, *, percent: bool) -> int | None:
    if digits is None:
        return None
    try:
        bound = int(digits)
    except ValueError:
        raise DataError(f"split {whole!r}: {digits!r} is not a number; {_EXAMPLES}") from None
    if percent and abs(bound) > 100:
        raise DataError(f"split {whole!r}: {bound}% is not between -100% and 100%")
    if abs(bound) > sys.maxsize:
        raise DataError(f"split {whole!r}: no dataset has {bound} rows")
    return bound


def _rounding(name: str | None, whole: str, *, percent: bool) -> Rounding:
    if not name:
        return "closest"
    if name not in _ROUNDINGS:
        raise DataError(f"split {whole!r}: rounding {name!r} is none of {', '.join(_ROUNDINGS)}")
    if not percent:
        raise DataError(f"split {whole!r}: a rounding needs percents")
    return name


def _checked(text: str) -> str:
    if "${" in text:
        return text  # a reference has its value when the task starts, and is checked then
    try:
        parse_split(text)
    except DataError as error:
        raise ValueError(str(error)) from None
    return text


SplitText = Annotated[str, AfterValidator(_checked)]
"""A field with a split; what `parse_split` cannot read is refused with the template."""
