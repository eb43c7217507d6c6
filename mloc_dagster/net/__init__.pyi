from .addresses import RefusedAddressError as RefusedAddressError
from .fetch import (
    Fetcher as Fetcher,
    FetchError as FetchError,
    OpenedFile as OpenedFile,
    PassingFetchError as PassingFetchError,
    check_upload as check_upload,
    download as download,
    file_system as file_system,
    guard_fsspec as guard_fsspec,
    has_content as has_content,
    reasons_for as reasons_for,
    save as save,
    uploaded_sha256 as uploaded_sha256,
)
from .guarded_async import guarded_async_client as guarded_async_client
from .guarded_transport import guarded_client as guarded_client
from .reach import (
    FALSE as FALSE,
    LOCAL as LOCAL,
    UPLOADS_FOLDER as UPLOADS_FOLDER,
    Origin as Origin,
    OutOfReachError as OutOfReachError,
    Reach as Reach,
    check_result_path as check_result_path,
    current_reach as current_reach,
)
