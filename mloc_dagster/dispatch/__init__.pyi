from .batching import batch_key as batch_key
from .dispatcher import Dispatcher as Dispatcher
from .following import Following as Following, take_in as take_in
from .open_runs import OpenRuns as OpenRuns
from .process import reload_location as reload_location, run as run
