"""What a submission brings: YAML in any of the forms that clients send, and data files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from fastapi import Request
from pydantic_core import from_json
from starlette.datastructures import UploadFile

from mloc_dagster.api.limits import Limits
from mloc_dagster.api.parameters import safe_name
from mloc_dagster.api.problems import Refusal
from mloc_dagster.wire import BODY_NAME

TEMPLATE_FIELDS = ("template", "yaml")
_YAML_ENDINGS = (".yaml", ".yml")
_MOST_FILES = 1_000


@dataclass(frozen=True, slots=True)
class Upload:
    """A data file.

    Attributes:
        name: As the template calls it.
        file: Its content, on disk when it is large.
    """

    name: str
    file: UploadFile


@dataclass(frozen=True, slots=True)
class SubmissionBody:
    """What a request brought.

    Attributes:
        text: The YAML.
        name: Its file's name.
        uploads: The data files.
    """

    text: bytes
    name: str = BODY_NAME
    uploads: Sequence[Upload] = ()


async def read_submission(request: Request, limits: Limits) -> SubmissionBody:
    """Reads a submission: raw YAML, a JSON string, `{"yaml": …}`, or a form with files.

    Raises:
        Refusal: If it is none of these, or too large.
    """
    if _is_form(request):
        return await _read_form(request, limits)
    body = await request.body()
    if not body.strip():
        raise Refusal(422, "invalid-request", "the body is empty: send a template as YAML")
    return SubmissionBody(_plain(body))


def _is_form(request: Request) -> bool:
    # curl calls everything a urlencoded form unless it is told otherwise: that is YAML, too.
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def _plain(body: bytes) -> bytes:
    """Returns the YAML that a body is, or carries as JSON."""
    if body.lstrip()[:1] not in (b'"', b"{"):
        return body
    try:
        value = from_json(body)
    except ValueError:
        return body  # YAML's own braces, or a mistake: the compiler says where
    if isinstance(value, dict) and isinstance(value.get("yaml"), str):
        others = sorted(str(each) for each in value if each != "yaml")
        if others:
            detail = f'{{"yaml": …}} has nothing beside it, but there is {", ".join(others)}'
            raise Refusal(422, "invalid-request", detail)
        value = value["yaml"]
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else body


async def _read_form(request: Request, limits: Limits) -> SubmissionBody:
    form = await request.form(
        max_files=_MOST_FILES, max_fields=_MOST_FILES, max_part_size=limits.body_bytes
    )
    template: SubmissionBody | None = None
    uploads: dict[str, Upload] = {}
    for field, value in form.multi_items():
        is_template = field in TEMPLATE_FIELDS or (
            isinstance(value, UploadFile) and (value.filename or "").endswith(_YAML_ENDINGS)
        )
        if is_template:
            if template is not None:
                detail = "two templates in one form; several documents may stand in one file"
                raise Refusal(422, "invalid-request", detail)
            template = await _template(value, limits)
        elif isinstance(value, UploadFile):
            upload = Upload(safe_name(_file_name(value)), value)
            if upload.name in uploads:
                raise Refusal(422, "invalid-request", f"two files are called {upload.name!r}")
            uploads[upload.name] = upload
        else:
            detail = f"the form's field {field[:100]!r} means nothing; {_EXPECTED}"
            raise Refusal(422, "invalid-request", detail)
    if template is None:
        raise Refusal(422, "invalid-request", f"the form has no template: {_EXPECTED}")
    return SubmissionBody(template.text, template.name, tuple(uploads.values()))


_EXPECTED = "send it as the field 'template' (or as a file *.yaml), and data files as 'file'"


async def _template(value: UploadFile | str, limits: Limits) -> SubmissionBody:
    if isinstance(value, str):
        return SubmissionBody(value.encode("utf-8", "surrogatepass"))
    text = await value.read(limits.body_bytes + 1)
    if len(text) > limits.body_bytes:
        detail = (
            f"the template is larger than {limits.body_bytes:,} bytes (MLOC_API_MAX_BODY_BYTES)"
        )
        raise Refusal(413, "too-large", detail)
    return SubmissionBody(text, safe_name(PurePosixPath(_file_name(value)).name))


def _file_name(file: UploadFile) -> str:
    return (file.filename or "").removeprefix("./") or BODY_NAME
