from .access import (
    drop_index as drop_index,
    find_index as find_index,
    index_info as index_info,
    index_names as index_names,
    list_indexes as list_indexes,
    open_index as open_index,
)
from .files import index_folder as index_folder
from .filters import fits as fits
from .keywords import (
    delete_keywords as delete_keywords,
    keyword_versions as keyword_versions,
    search_keywords as search_keywords,
    tokens as tokens,
    write_keywords as write_keywords,
)
from .protocol import (
    IndexInfo as IndexInfo,
    IndexVersion as IndexVersion,
    OpenIndex as OpenIndex,
)
