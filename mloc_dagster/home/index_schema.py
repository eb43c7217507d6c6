"""Where indexes of chunks lie in the embedded PostgreSQL, and whose they are.

`mloc run` connects as the owner of the server, a worker of `mloc up` as a role that may do little.
An index that one of them made has to be open to the other, so that all belong to a third role.
"""

INDEX_SCHEMA = "mloc_index"
INDEX_ROLE = "mloc_index"

_MAKE_ROLE = (
    f"DO $$BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{INDEX_ROLE}') "
    f"THEN CREATE ROLE {INDEX_ROLE} NOLOGIN; END IF; END$$"
)

INDEX_SCHEMA_STATEMENTS = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    _MAKE_ROLE,
    f"CREATE SCHEMA IF NOT EXISTS {INDEX_SCHEMA} AUTHORIZATION {INDEX_ROLE}",
)
"""Run by the server's owner, any number of times."""
