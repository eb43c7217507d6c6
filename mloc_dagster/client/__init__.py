"""The Python client of the HTTP API, and the models that both sides speak."""
