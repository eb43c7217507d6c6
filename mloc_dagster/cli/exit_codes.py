"""What `mloc` exits with."""

OK = 0
FAILED = 1
"""A task failed."""

BAD_INPUT = 2
"""Something the user wrote or named is wrong; also a wrong command line."""

INTERRUPTED = 130
"""Ctrl-C, as shells have it: 128 + SIGINT."""

TERMINATED = 143
"""SIGTERM: 128 + SIGTERM."""
