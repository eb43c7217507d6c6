"""The Python face: tasks run, streamed, submitted and looked at from a program or a notebook.

`import mloc` brings its names; docs/python.md shows all of it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
