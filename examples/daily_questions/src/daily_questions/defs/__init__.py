"""The assets of the project."""
