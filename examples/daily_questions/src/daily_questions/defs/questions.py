"""The questions of each day: an asset of this project, which knows nothing of mloc."""

import dagster as dg

DAYS = dg.DailyPartitionsDefinition(start_date="2026-01-01")


@dg.asset(partitions_def=DAYS, group_name="daily_questions")
def questions(context: dg.AssetExecutionContext) -> list[dict[str, str]]:
    """What was asked on a day."""
    day = context.partition_key
    return [
        {"question": f"What happened on {day}?", "topic": "news"},
        {"question": f"Which weekday is {day}?", "topic": "calendar"},
    ]
