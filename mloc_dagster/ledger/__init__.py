"""What was accepted, durably, and what became of it: submissions, tasks and runs in PostgreSQL."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
