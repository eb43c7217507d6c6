"""Thin Dagster ops over plain functions."""
