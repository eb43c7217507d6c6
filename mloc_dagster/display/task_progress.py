"""How far a task is and how fast it goes, added up from events, and the figures beside its bar."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

from mloc_dagster.display.tables import count, counts_in_words, duration, rate, short_rate
from mloc_dagster.events import Payload, TaskEvent, TaskEventType, TrainingFigures

WINDOW_S = 20.0
"""Speeds are those of the last seconds: a model that loads first does not spoil the estimate."""

SETTLED_S = 1.0
"""So long after the first rows the time before them, with a model loading, counts no more."""

LOADING_S = 3.0
"""First rows that took longer may have waited for a model to load."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """What happens in a second.

    Attributes:
        rows: Rows that end.
        prompt_tokens: Tokens that are read.
        tokens: Tokens that are written.
    """

    rows: float = 0.0
    prompt_tokens: float = 0.0
    tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class _Mark:
    at: float
    rows: int
    prompt_tokens: int
    tokens: int


@dataclass(slots=True)
class _Shard:
    rows: int = 0
    rows_this_attempt: int = 0
    counts: dict[str, int] = field(default_factory=dict[str, int])


class TaskProgress:
    """The state of one task, as its events tell it.

    Args:
        node: The stage or node, for people.
        now: A clock.

    Attributes:
        total_rows: Rows of the input; 0 until it is known.
        tokens: Tokens written in this run.
        prompt_tokens: Tokens read in this run.
        cached_tokens: How many of these were found in a prefix cache.
        reused: Rows of this run whose answer was there already.
        errors: Rows of this run that ended with an error.
        shards_done: Shards that are complete.
        total_shards: Shards of the task; 0 until the first one starts.
        failed_attempts: Attempts at shards that failed.
        succeeded: Whether everything of the task is done.
        slo_s: Seconds that the template allows from submission to the last result.
        training: How far a training is; None of other tasks, and before its first step.
    """

    def __init__(self, node: str, now: Callable[[], float] = monotonic) -> None:
        self.node = node
        self.total_rows = self.tokens = self.errors = 0
        self.prompt_tokens = self.cached_tokens = self.reused = 0
        self.slo_s: float | None = None
        self.training: TrainingFigures | None = None
        self.shards_done = self.total_shards = self.failed_attempts = 0
        self.succeeded = False
        self._now = now
        self._shards: dict[int, _Shard] = {}
        self._rows_done = self._rows_computed = 0
        self._marks: deque[_Mark] = deque()
        self._due: float | None = None
        self._eta_s: float | None = None
        self._heard = 0.0

    @property
    def rows_done(self) -> int:
        """Rows that are there, those of earlier runs included."""
        return self._rows_done

    @property
    def done(self) -> tuple[int, int, str]:
        """How much there is and will be, in rows or in a training's steps."""
        if self.training is None:
            return self._rows_done, self.total_rows, "row"
        return self.training.step, self.training.steps, "step"

    @property
    def rows_computed(self) -> int:
        """Rows that ended in this run."""
        return self._rows_computed

    @property
    def counts(self) -> Mapping[str, int]:
        """What has happened of what the task type counts, as far as this run tells."""
        total: Counter[str] = Counter()
        for shard in self._shards.values():
            total.update(shard.counts)
        return total

    @property
    def finishing(self) -> bool:
        """Whether all rows are there and the result files are being written."""
        return not self.succeeded and 0 < self.total_shards == self.shards_done

    def take(self, event: TaskEvent) -> None:
        """Counts one event of this task."""
        match event.type:
            case TaskEventType.TASK_STARTED:
                self._take_start(event)
            case TaskEventType.TASK_SUCCEEDED:
                self.succeeded = True
                self._rows_done = self.total_rows
            case _ if event.shard is not None:
                self.total_shards = event.shard.total
                shard = self._shards.setdefault(event.shard.index, _Shard())
                self._take_of_shard(event, shard)

    def _take_start(self, event: TaskEvent) -> None:
        payload = event.payload
        self.total_rows, self.slo_s = payload.rows, payload.slo_s
        if payload.due is not None:
            # Only the difference of wall times is used: the clock here is another one.
            self._due = self._now() + (payload.due - event.ts).total_seconds()
        self._mark()

    def _take_of_shard(self, event: TaskEvent, shard: _Shard) -> None:
        match event.type:
            case TaskEventType.SHARD_STARTED:
                shard.rows_this_attempt = 0
                self._mark()
            case TaskEventType.TASK_PROGRESS if event.payload.training is not None:
                self.training, self._eta_s = event.payload.training, event.payload.eta_s
                self._heard = self._now()
            case TaskEventType.TASK_PROGRESS:
                shard.rows_this_attempt += event.payload.rows
                before = event.payload.resumed or shard.rows
                self._set_rows(shard, before + event.payload.rows)
                self._rows_computed += event.payload.rows
                self._add(event.payload)
                shard.counts = event.payload.counts or shard.counts
                if event.payload.rows or event.payload.resumed:  # speeds are those of rows
                    self._mark()
            case TaskEventType.SHARD_SUCCEEDED:
                # An event may be missed; this one has the whole shard.
                self._set_rows(shard, event.payload.rows + shard.rows_this_attempt)
                self.shards_done += 1
            case TaskEventType.SHARD_FAILED:
                self.failed_attempts += 1

    def _add(self, payload: Payload) -> None:
        self.tokens += payload.tokens
        self.prompt_tokens += payload.prompt_tokens
        self.cached_tokens += payload.cached_tokens
        self.reused += payload.reused
        self.errors += payload.errors

    def _set_rows(self, shard: _Shard, rows: int) -> None:
        self._rows_done += rows - shard.rows
        shard.rows = rows

    def _mark(self) -> None:
        now = self._now()
        marks = self._marks
        marks.append(_Mark(now, self._rows_computed, self.prompt_tokens, self.tokens))
        while len(marks) > 2 and marks[1].at < now - WINDOW_S:
            marks.popleft()
        self._forget_idleness(now)

    def _forget_idleness(self, now: float) -> None:
        while len(self._marks) > 2 and self._was_idle(now):
            self._marks.popleft()

    def _was_idle(self, now: float) -> bool:
        """Whether nothing ended before the second mark: a model was loading, or nobody at work."""
        marks = self._marks
        if marks[0].rows:
            return False
        settled = now - marks[1].at >= SETTLED_S and marks[-1].rows > marks[1].rows
        return settled or not marks[1].rows

    def speeds(self) -> Speeds:
        """Returns what happened in a second, lately; zeros while nothing is known.

        Nothing is for a moment after the very first rows of a task that waited for them: whether a
        model loaded until then or they took so long is seen when more of them end, or none.
        """
        now = self._now()
        self._forget_idleness(now)
        if not self._marks or self._is_young(now):
            return Speeds()
        first = self._marks[0]
        seconds = max(now - first.at, 1e-3)
        return Speeds(
            (self._rows_computed - first.rows) / seconds,
            (self.prompt_tokens - first.prompt_tokens) / seconds,
            (self.tokens - first.tokens) / seconds,
        )

    def _is_young(self, now: float) -> bool:
        if self._marks[0].rows or len(self._marks) < 2 or not self._marks[1].rows:
            return False
        began, first = self._marks[0], self._marks[1]
        return first.at - began.at > LOADING_S and now - first.at < SETTLED_S

    def remaining_s(self) -> float | None:
        """Returns the estimated seconds until the last row or step; None while none is known."""
        if self.training is not None:
            since = self._now() - self._heard
            return None if self._eta_s is None else max(self._eta_s - since, 0.0)
        rows_per_s = self.speeds().rows
        if not rows_per_s or not self.total_rows:
            return None
        return max(self.total_rows - self._rows_done, 0) / rows_per_s

    def late_s(self, remaining_s: float | None) -> float | None:
        """Returns how many seconds after its SLO the task will end; negative is early.

        Args:
            remaining_s: Seconds until its last row.

        Returns:
            None without an SLO, and while it is neither late nor known when the task will end.
        """
        if self._due is None:
            return None
        late_s = self._now() + (remaining_s or 0.0) - self._due
        return None if remaining_s is None and late_s <= 0 else late_s


def task_figures(task: TaskProgress, width: int | None = None) -> str:
    """Returns what stands next to a task's bar: speeds, hits, shards, errors, time left, SLO.

    Args:
        task: The task.
        width: Characters there are; None is enough for everything.
    """
    figures = [
        *_training_figures(task),
        *_speed_figures(task),
        *_count_figures(task),
        *_saving_figures(task),
        *_shard_figures(task),
        *_outlook(task),
    ]
    return fit(figures, width)


_SHOWN_OF_A_TRAINING = {
    "loss": "loss",
    "objective/score": "score",
    "objective/kl": "KL",
    "reward": "reward",
    "rewards/accuracies": "accuracy",
    "learning_rate": "lr",
    "tokens_per_s": "tokens/s",
}
"""What stands next to a training's bar, where its trainer logs it, and how it is called there."""


def _training_figures(task: TaskProgress) -> list[Figure]:
    training = task.training
    if training is None or task.finishing or task.succeeded:
        return []
    figures: list[Figure] = []
    if training.steps_per_s:
        speed = f"{training.steps_per_s:.3g}"
        figures.append(Figure(8, (f"{speed} steps/s", f"{speed}/s")))
    for importance, (name, called) in enumerate(_SHOWN_OF_A_TRAINING.items()):
        if name in training.metrics:
            value = f"{training.metrics[name]:.3g}"
            figures.append(Figure(7 - min(importance, 6), (f"{called} {value}",)))
    return figures


def _speed_figures(task: TaskProgress) -> list[Figure]:
    if not task.rows_computed or task.finishing or task.succeeded:
        return []
    speeds = task.speeds()
    if not speeds.rows:
        return []
    read, written = speeds.prompt_tokens, speeds.tokens
    return [
        Figure(8, (f"{rate(speeds.rows)} rows/s", f"{rate(speeds.rows)}/s")),
        Figure(
            6,
            (
                f"{rate(read)} prompt + {rate(written)} output tokens/s",
                f"{short_rate(read)} in + {short_rate(written)} out tok/s",
                f"{short_rate(read)}+{short_rate(written)} tok/s",
            ),
        ),
    ]


def _count_figures(task: TaskProgress) -> list[Figure]:
    return [Figure(5, (text,)) for text in counts_in_words(task.counts)]


def _saving_figures(task: TaskProgress) -> list[Figure]:
    figures: list[Figure] = []
    if task.cached_tokens:
        hits = f"{task.cached_tokens / task.prompt_tokens:.0%}"
        figures.append(Figure(4, (f"{hits} cache hits", f"{hits} hits")))
    if task.reused:
        figures.append(
            Figure(3, (f"{count(task.reused, 'row')} reused", f"{task.reused:,} reused"))
        )
    return figures


def _shard_figures(task: TaskProgress) -> list[Figure]:
    figures: list[Figure] = []
    if task.total_shards:
        done = f"{task.shards_done}/{task.total_shards}"
        figures.append(Figure(1, (f"{done} shards", f"{done} sh")))
    if task.errors:
        figures.append(Figure(5, (count(task.errors, "error"), f"{task.errors:,} err")))
    if task.failed_attempts:
        failed = count(task.failed_attempts, "failed attempt")
        figures.append(Figure(2, (failed, f"{task.failed_attempts} failed")))
    return figures


def _outlook(task: TaskProgress) -> list[Figure]:
    if task.succeeded:
        return [Figure(9, ("done",))]
    if task.finishing:
        return [Figure(9, ("writing results",)), *_promise(task, 0.0)]
    remaining = task.remaining_s()
    if remaining is None:
        return _promise(task, None)
    return [Figure(9, (f"{duration(remaining)} left",)), *_promise(task, remaining)]


def _promise(task: TaskProgress, remaining_s: float | None) -> list[Figure]:
    late_s = task.late_s(remaining_s)
    if late_s is None:
        return []
    name = f"SLO {task.slo_s:g} s"
    if late_s <= 0:
        return [Figure(7, (f"{name}: on time", "SLO ok"))]
    by = f"{late_s:.0f} s" if late_s < 60 else duration(late_s)
    return [Figure(7, (f"{name}: at risk, about {by} late", f"SLO at risk: +{by}", f"SLO +{by}"))]


SEPARATOR = " · "
NARROW_SEPARATOR = "  "


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure in one or more wordings.

    Attributes:
        importance: What is more important is shortened and left out later.
        wordings: From the most explicit to the shortest.
    """

    importance: int
    wordings: tuple[str, ...]


def fit(figures: Sequence[Figure], width: int | None) -> str:
    """Returns the figures in their order, on a line of at most `width` characters.

    All are shortened, and moved together, before one is left out. The most important one stays.

    Args:
        figures: What there is to say.
        width: Characters there are; None is enough for everything.
    """
    shown = dict.fromkeys(range(len(figures)), 0)
    if width is None:
        return _line(figures, shown)
    by_importance = sorted(shown, key=lambda place: figures[place].importance)
    longest = max((len(each.wordings) for each in figures), default=0)
    for shorter in range(1, longest):
        for place in by_importance:
            if len(_line(figures, shown)) <= width:
                return _line(figures, shown)
            shown[place] = min(shorter, len(figures[place].wordings) - 1)
    for place in by_importance[:-1]:
        for separator in (SEPARATOR, NARROW_SEPARATOR):
            if len(line := _line(figures, shown, separator)) <= width:
                return line
        del shown[place]
    return _line(figures, shown)


def _line(figures: Sequence[Figure], shown: dict[int, int], separator: str = SEPARATOR) -> str:
    return separator.join(figures[place].wordings[shorter] for place, shorter in shown.items())
