"""Thin Dagster sensors over plain functions."""
