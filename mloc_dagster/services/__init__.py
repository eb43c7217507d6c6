"""What mloc runs on: the embedded PostgreSQL and the Dagster instance over it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
