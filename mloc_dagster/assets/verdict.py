"""What blocking checks come to, and how their step ends."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import dagster as dg


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check came to.

    Attributes:
        problem: What is wrong, in a sentence; empty when the check passed.
        metadata: What a person wants to see of it.
    """

    problem: str
    metadata: Mapping[str, str | int | float]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem


def check_results(
    key: dg.AssetKey, verdicts: Mapping[str, Verdict]
) -> Iterator[dg.AssetCheckResult]:
    """Yields the results of blocking checks; then, if one failed, ends their step in words.

    Dagster's own error says only how the checks are called, and it is what reaches everybody who
    reads why a task failed.

    Args:
        key: The asset that was checked.
        verdicts: What each check came to, by name.

    Raises:
        dg.Failure: With the problems, if there are any.
    """
    for name, verdict in verdicts.items():
        yield dg.AssetCheckResult(
            check_name=name, asset_key=key, passed=verdict.passed, metadata=verdict.metadata
        )
    problems = [each.problem for each in verdicts.values() if not each.passed]
    if problems:
        raise dg.Failure(description="; ".join(problems), allow_retries=False)
