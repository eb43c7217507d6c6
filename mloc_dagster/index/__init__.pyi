from .protocol import (
    Hit as Hit,
    IndexInfo as IndexInfo,
    IndexOpener as IndexOpener,
    IndexVersion as IndexVersion,
    OpenIndex as OpenIndex,
    Vectors as Vectors,
)
