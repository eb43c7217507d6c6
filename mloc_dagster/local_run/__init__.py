"""Running templates here and now: which is meant, what it will take, the run, going on with it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
