from .app import create_viewer as create_viewer
from .pages import (
    SESSION_COOKIE as SESSION_COOKIE,
    VIEWER_PATH as VIEWER_PATH,
    batch_address as batch_address,
    is_open_page as is_open_page,
    login_address as login_address,
    task_address as task_address,
    workflow_address as workflow_address,
)
