"""The Python client of the HTTP API, for threads and for asyncio; docs/client.md shows all of it.

What it sends and returns are the models of `mloc_dagster.wire`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
