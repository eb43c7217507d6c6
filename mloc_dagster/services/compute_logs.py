"""What steps print under `dagster dev`, kept for Dagster's UI below `MLOC_HOME`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

from mloc_dagster.settings import settings

if TYPE_CHECKING:
    from dagster._serdes import ConfigurableClassData


class ComputeLogs(LocalComputeLogManager):
    """Dagster's local compute logs; dagster.yaml itself can't say where `MLOC_HOME` is."""

    @classmethod
    def config_type(cls) -> dict[str, object]:
        """Takes no configuration in dagster.yaml: the folder is a setting of mloc."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: object
    ) -> ComputeLogs:
        """Builds the manager when Dagster loads its instance."""
        return cls(str(settings().home.resolve() / "compute_logs"), inst_data=inst_data)
