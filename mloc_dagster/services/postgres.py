"""Dagster's storage on PostgreSQL: the one that is configured, or the embedded one."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from dagster_postgres import DagsterPostgresStorage

from mloc_dagster.errors import TransientError
from mloc_dagster.home import postgres_url
from mloc_dagster.services.event_log import EventLog
from mloc_dagster.services.stack.answers import check_postgres
from mloc_dagster.services.storages import DATABASE_AWAY, RunStorage, ScheduleStorage

if TYPE_CHECKING:
    from mloc_dagster.services.internals import ConfigurableClassData


class PostgresStorage(DagsterPostgresStorage):
    """Dagster's PostgreSQL storage on `MLOC_POSTGRES_URL`, or on the embedded server."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(postgres_url, inst_data=inst_data)
        self._run_storage = RunStorage(postgres_url)
        self._event_log_storage = EventLog(postgres_url)
        self._schedule_storage = ScheduleStorage(postgres_url)

    @classmethod
    def config_type(cls) -> dict[str, object]:
        """Takes no configuration in dagster.yaml: the URL is a setting of mloc."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: object
    ) -> PostgresStorage:
        """Builds the storage when Dagster loads its instance.

        Raises:
            InputError: If PostgreSQL refuses the user, the password or the database.
        """
        url = postgres_url()
        try:
            return cls(url, inst_data=inst_data)
        except DATABASE_AWAY:
            with suppress(TransientError):
                check_postgres(url)
            raise
