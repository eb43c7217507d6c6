from .dataset import dataset_rows as dataset_rows
from .images import (
    TASK_PROTOCOL as TASK_PROTOCOL,
    data_uri_bytes as data_uri_bytes,
    image_kind as image_kind,
    with_images as with_images,
)
from .input_rows import Rows as Rows, RowsFile as RowsFile, write_rows as write_rows
from .look import look_at_data as look_at_data
from .openai_batch import (
    BatchFile as BatchFile,
    RequestBlock as RequestBlock,
    Requests as Requests,
    check_endpoints as check_endpoints,
    request_rows as request_rows,
    scan_batch as scan_batch,
)
from .row_shape import with_texts as with_texts
from .rows import (
    RowsBlock as RowsBlock,
    lookup_reference as lookup_reference,
    open_rows as open_rows,
)
from .spool import (
    IMAGE_TOKENS as IMAGE_TOKENS,
    InputPlanning as InputPlanning,
    RowForecast as RowForecast,
    image_count as image_count,
    read_input as read_input,
    read_places as read_places,
    respool_failed as respool_failed,
    row_key as row_key,
    spool_input as spool_input,
)
from .training_rows import (
    EVALUATION_ROWS_NAME as EVALUATION_ROWS_NAME,
    TRAINING_ROWS_NAME as TRAINING_ROWS_NAME,
    TrainingInputSummary as TrainingInputSummary,
    check_budget as check_budget,
    evaluation_rows as evaluation_rows,
    open_training_rows as open_training_rows,
    write_evaluation_rows as write_evaluation_rows,
    write_training_rows as write_training_rows,
)
