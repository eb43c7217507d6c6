"""Rows → shards. Pure: numbers in, numbers out."""
