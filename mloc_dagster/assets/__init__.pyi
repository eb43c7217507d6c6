from .component import MlocTemplate as MlocTemplate
from .partitions import (
    add_partition as add_partition,
    check_partition as check_partition,
    remove_partition as remove_partition,
)
from .placement import job_name as job_name
from .project_assets import mloc_assets as mloc_assets, mloc_sources as mloc_sources
from .task_graph import fleet_tags_of as fleet_tags_of
from .template_job import (
    JOB as JOB,
    batch_definitions as batch_definitions,
    batch_run_config as batch_run_config,
    template_definitions as template_definitions,
)
