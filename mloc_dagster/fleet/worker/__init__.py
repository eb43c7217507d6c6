"""The process behind `mloc worker`."""
