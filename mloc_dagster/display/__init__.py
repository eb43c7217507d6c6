"""What people see in a terminal or a notebook: progress, tables, figures in words."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
