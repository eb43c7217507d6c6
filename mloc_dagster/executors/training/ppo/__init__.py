"""Proximal policy optimisation of a language model: options, rollouts, losses, updates, resuming.

An update samples answers (`rollouts`), scores them and works out advantages (`experience`), and
takes optimiser steps on them (`update`); `trainer` repeats that, `state` writes it down.
"""
