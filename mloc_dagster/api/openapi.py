"""The OpenAPI document beyond the types, and `/docs`, which shows it without the internet."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from mloc_dagster.viewer import VIEWER_PATH, is_open_page
from mloc_dagster.wire import Problem

DOCS = "/docs"
_ASSETS = f"{DOCS}/assets"
_OPENAPI = "/openapi.json"

OPEN_PATHS = ("/", DOCS, _OPENAPI)
"""What tells nothing but how the API is asked; who asks it needs the token."""


def is_open(path: str) -> bool:
    """Tells whether a path asks for no token: the documentation's, and signing in to the viewer."""
    return path in OPEN_PATHS or path.startswith(f"{_ASSETS}/") or is_open_page(path)


def install_docs(app: FastAPI) -> None:
    """Adds the page and what it loads; an app must be made without FastAPI's own."""
    # The page of FastAPI itself loads these from another site.
    shipped = str(files("fastapi_offline") / "static")
    app.mount(_ASSETS, StaticFiles(directory=shipped), name="docs-assets")

    @app.get(DOCS, include_in_schema=False)
    async def docs() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url=_OPENAPI,
            title=f"{app.title} API",
            swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{_ASSETS}/favicon.png",
        )
        keeping = f'<script src="{VIEWER_PATH}/static/docs.js"></script></body>'
        return HTMLResponse(bytes(page.body).decode().replace("</body>", keeping))


_REASONS = {
    400: "The request cannot be read.",
    401: "A token is needed, and there is none or a wrong one.",
    403: "A web page of another origin asked.",
    404: "There is no such task, file or worker.",
    408: "The body did not arrive in time.",
    409: "What is there stands against it.",
    413: "The body is too large.",
    415: "A browser may send this content type for any page, and there is no token.",
    416: "The range lies outside of the file.",
    421: "The host is not one of the API's names.",
    422: "The request is wrong; `errors` says where.",
    429: "Too much at a time.",
    503: "The database, Redis or the results store is away; send the same request again.",
}

_EXAMPLE = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: hello, owner: team-a, labels: {purpose: example}}
spec:
  taskType: echo
  data: {type: list, items: [one, two]}
"""

_PROBLEM_EXAMPLE = {
    "type": "urn:mloc:invalid-template",
    "title": "Unprocessable Content",
    "status": 422,
    "detail": "body.yaml:5:13: spec.taskType: unknown task type 'ecko'; did you mean 'echo'?",
    "instance": "/api/v1/tasks",
    "errors": [
        {
            "file": "body.yaml",
            "line": 5,
            "column": 13,
            "path": "spec.taskType",
            "message": "unknown task type 'ecko'; did you mean 'echo'?",
            "severity": "error",
        }
    ],
}

_YAML = {"schema": {"type": "string", "minLength": 1}, "example": _EXAMPLE}

SUBMIT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/yaml": _YAML,
            "text/plain": _YAML,
            "application/json": {
                "schema": {
                    "anyOf": [
                        {"type": "string", "minLength": 1, "description": "The YAML."},
                        {
                            "type": "object",
                            "properties": {"yaml": {"type": "string", "minLength": 1}},
                            "required": ["yaml"],
                            "additionalProperties": False,
                        },
                        {"type": "object", "description": "The template itself."},
                    ]
                },
                "example": {"yaml": _EXAMPLE},
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "template": {"type": "string", "minLength": 1},
                        "file": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "Data files, by the names that the template uses.",
                        },
                    },
                    "required": ["template"],
                    "additionalProperties": False,
                }
            },
        },
    }
}

FILES_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                    "required": ["file"],
                }
            }
        },
    }
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns what a route says of the problems that it answers with."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({401, 403, 415, 421, 503, *statuses}):
        content: dict[str, Any] = {
            "schema": {"$ref": "#/components/schemas/Problem"},
        }
        if status == 422:
            content["example"] = _PROBLEM_EXAMPLE
        found[status] = {
            "description": _REASONS[status],
            "content": {"application/problem+json": content},
        }
    return found


def binary(*media_types: str) -> dict[str, Any]:
    """Returns what a route says of files that it answers with."""
    octets = {"schema": {"type": "string", "format": "binary"}}
    content = {each: {} if each == "application/json" else octets for each in media_types}
    return {"description": "The file.", "content": content}


def describe(app: FastAPI, *, token: bool) -> None:
    """Makes the app's OpenAPI document complete: problems, and who may ask."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, token=token)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, *, token: bool) -> dict[str, Any]:
    found = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schemas["Problem"].pop("$defs", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    if token:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
        for path in ("/healthz", "/healthz/ready"):
            found["paths"][path]["get"]["security"] = []
    return found
