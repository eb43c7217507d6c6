"""The routes below `/v1`, which programs call that were written for OpenAI's API."""
