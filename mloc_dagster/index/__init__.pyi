from .access import list_indexes as list_indexes, open_index as open_index
from .filters import fits as fits
from .protocol import (
    Hit as Hit,
    IndexInfo as IndexInfo,
    IndexOpener as IndexOpener,
    IndexVersion as IndexVersion,
    OpenIndex as OpenIndex,
    Vectors as Vectors,
)
