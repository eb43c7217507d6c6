"""From accepted tasks to Dagster runs, and from ended runs back to the ledger."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
