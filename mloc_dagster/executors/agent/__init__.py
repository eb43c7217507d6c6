"""The task type `agent`: trajectories of a model and its tools over one warm engine."""
