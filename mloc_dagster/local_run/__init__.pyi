from .estimate import (
    TaskEstimate as TaskEstimate,
    estimate_template as estimate_template,
    total_of as total_of,
)
from .openmp import wait_asleep as wait_asleep
from .resume import (
    check_not_running as check_not_running,
    close_dead_runs as close_dead_runs,
    resumable as resumable,
    start_over as start_over,
)
from .run import (
    RunOutcome as RunOutcome,
    TaskOutcome as TaskOutcome,
    check_runnable as check_runnable,
    misfits as misfits,
    outcomes as outcomes,
    run_template as run_template,
)
from .templates import (
    check_partitions as check_partitions,
    compile_changed as compile_changed,
    compile_with_sets as compile_with_sets,
    template_path as template_path,
)
