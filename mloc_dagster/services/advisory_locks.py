"""The numbers of mloc's advisory locks in PostgreSQL, apart from what needs Dagster."""

from enum import IntEnum, unique


@unique
class AdvisoryLock(IntEnum):
    """Any numbers would do, if every process knows the same ones."""

    CREATE_TABLES = 0x6D6C6F63
    LEAD = 0x6D6C6F64
    """Held by the dispatcher that leads, as long as it does."""
    FOLD_STATE_COUNTS = 0x6D6C6F65
    KEEP_CONTENTS = 0x6D6C6F66
    """Shared by those who accept; taken alone by who deletes request keys and documents."""
