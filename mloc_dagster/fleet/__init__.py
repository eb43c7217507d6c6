"""The fleet: long-lived workers that carry runs and their steps, and the engine between them.

What other packages need of an engine is here. `fleet.dagster` is Dagster's side, `fleet.worker`
the process of a worker; `placement` and `slo` decide, and touch nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
