"""Tests that speak OpenAI's API, on one stack for each module."""
