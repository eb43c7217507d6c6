"""What came of the questions: an asset of this project that reads mloc's rows."""

import dagster as dg
import pyarrow as pa

from daily_questions.defs.questions import DAYS


@dg.asset(
    ins={"answers": dg.AssetIn(["answers", "responses"])},
    partitions_def=DAYS,
    group_name="daily_questions",
    automation_condition=dg.AutomationCondition.eager(),
)
def report(answers: pa.Table) -> dg.MaterializeResult:
    """How many questions of each topic were answered."""
    counts = answers.group_by("topic").aggregate([("output", "count")])
    rows = counts.rename_columns(["topic", "answers"]).to_pylist()
    return dg.MaterializeResult(metadata={"answers": dg.MetadataValue.json(rows)})


every_morning = dg.build_schedule_from_partitioned_job(
    dg.define_asset_job(
        "every_morning", dg.AssetSelection.groups("daily_questions"), partitions_def=DAYS
    ),
    hour_of_day=6,
)
