"""An endpoint that speaks OpenAI's API, as an engine."""
