from .progress import (
    Monitor as Monitor,
    View as View,
    monitoring as monitoring,
    view_for as view_for,
)
from .tables import (
    count as count,
    counts_in_words as counts_in_words,
    duration as duration,
    print_table as print_table,
    rate as rate,
    shorten as shorten,
)
from .task_progress import TaskProgress as TaskProgress, task_figures as task_figures
