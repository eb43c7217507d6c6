"""Indexes of chunks: versions, search by meaning and by words, behind one protocol."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
