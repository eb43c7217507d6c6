from .checks import judge_rows as judge_rows, judge_training as judge_training
from .task_graph import fleet_tags_of as fleet_tags_of, job_name as job_name
from .template_job import (
    JOB as JOB,
    batch_definitions as batch_definitions,
    batch_run_config as batch_run_config,
    template_definitions as template_definitions,
)
