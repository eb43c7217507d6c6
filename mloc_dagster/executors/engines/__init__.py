"""Engines: what a loaded model must do, which one runs a task here, and ours."""
