from .batching import batch_key as batch_key
from .dispatcher import Dispatcher as Dispatcher
from .process import reload_location as reload_location, run as run
