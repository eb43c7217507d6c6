"""Acme's additions to mloc."""
