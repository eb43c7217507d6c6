"""What an agent may call: sandbox, search, HTTP, MCP servers and functions of distributions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
