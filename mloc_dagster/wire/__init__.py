"""What travels over HTTP, as the server and the client speak it: requests, replies, problems.

The states of a task are defined here and nowhere else. The ledger and the CLI import
them from here, so that the database, the API and the commands use the same words.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
