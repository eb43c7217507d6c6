"""The YAML as types. Imports nothing of mloc but errors."""
