from .checks import check_tools as check_tools
from .failure import FailedCall as FailedCall, ToolFailure as ToolFailure
from .functions import tool_functions as tool_functions
from .idempotency import calling as calling, idempotency_key as idempotency_key
from .observed import ObservedToolset as ObservedToolset
from .registered import check_registered as check_registered
from .toolsets import open_toolsets as open_toolsets
