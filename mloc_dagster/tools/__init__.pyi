from .checks import check_tools as check_tools
from .failure import FailedCall as FailedCall
from .functions import tool_functions as tool_functions
from .registered import check_registered as check_registered
from .toolsets import open_toolsets as open_toolsets
