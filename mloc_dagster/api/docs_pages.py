"""`/docs`: every endpoint in a browser, without the internet; `/` leads there."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

DOCS = "/docs"
_ASSETS = f"{DOCS}/assets"
_OPENAPI = "/openapi.json"

OPEN_PATHS = ("/", DOCS, _OPENAPI)
"""What tells nothing but how the API is asked; who asks it needs the token."""


def is_open(path: str) -> bool:
    """Tells whether a path belongs to the documentation, which asks for no token."""
    return path in OPEN_PATHS or path.startswith(f"{_ASSETS}/")


def install_docs(app: FastAPI) -> None:
    """Adds the page and what it loads; an app must be made without FastAPI's own."""
    # The page of FastAPI itself loads these from another site.
    shipped = str(files("fastapi_offline") / "static")
    app.mount(_ASSETS, StaticFiles(directory=shipped), name="docs-assets")

    @app.get(DOCS, include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=_OPENAPI,
            title=f"{app.title} API",
            swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{_ASSETS}/favicon.png",
        )

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse(DOCS)
