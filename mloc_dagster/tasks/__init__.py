"""Tasks as people ask for them: launch, show, cancel, retry. Plain functions over an instance."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
