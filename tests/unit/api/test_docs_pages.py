from __future__ import annotations

import re

import pytest

from mloc_dagster.settings import settings
from tests.api_server import serving


def test_the_docs_load_from_here_alone_and_need_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_API_TOKEN", "t")
    settings.cache_clear()
    with serving() as api:
        page = api.client.get("/docs", headers={"Accept": "text/html"})
        assert (page.status_code, page.url.path) == (200, "/docs")
        loaded = re.findall(r"""(?:src|href|url)["']?\s*[=:]\s*["']([^"']+)""", page.text)
        assert len(loaded) >= 4
        for address in loaded:
            assert address.startswith("/")
            assert api.client.get(address).status_code == 200
        assert "SwaggerUIBundle" in api.client.get(loaded_script(loaded)).text
        document = api.client.get("/openapi.json").json()
        assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
        assert api.client.get("/api/v1/tasks").status_code == 401


def loaded_script(addresses: list[str]) -> str:
    return next(each for each in addresses if each.endswith(".js"))


def test_other_paths_are_404_and_say_so_in_json() -> None:
    with serving() as api:
        for path in ("/nope", "/redoc", "/docs/assets/nope.js", "/docs/assets/../../auth.py"):
            answer = api.client.get(path)
            assert answer.status_code == 404, path
            assert answer.headers["content-type"] == "application/problem+json"
