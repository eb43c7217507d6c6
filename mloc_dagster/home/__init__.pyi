from .index_schema import (
    INDEX_ROLE as INDEX_ROLE,
    INDEX_SCHEMA as INDEX_SCHEMA,
    INDEX_SCHEMA_STATEMENTS as INDEX_SCHEMA_STATEMENTS,
)
from .layout import (
    StackLayout as StackLayout,
    private_home as private_home,
    stack_layout as stack_layout,
    supervisor_process as supervisor_process,
)
from .postgres import postgres_url as postgres_url
from .postgres_files import (
    ACCESS_FILE as ACCESS_FILE,
    ORPHAN_PATIENCE_S as ORPHAN_PATIENCE_S,
    is_supervised as is_supervised,
    make_data_folder as make_data_folder,
    orphans_of as orphans_of,
    postmaster as postmaster,
)
from .postgres_users import PostgresUsers as PostgresUsers
