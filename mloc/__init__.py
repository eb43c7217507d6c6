"""mloc from Python: run, stream, submit and look at tasks. docs/python.md shows all of it."""

from importlib import import_module as _import_module

_HOMES = {
    "mloc_dagster.assets": ("MlocTemplate", "mloc_assets", "mloc_sources"),
    "mloc_dagster.client": ("AsyncClient", "Client"),
    "mloc_dagster.compile": ("Diagnostic",),
    "mloc_dagster.errors": ("DataError", "InputError", "MlocError", "TemplateError"),
    "mloc_dagster.fleet": ("mloc_executor",),
    "mloc_dagster.python": (
        *("Progress", "Result", "RowStream", "RunInterrupted", "Session", "Submission"),
        *("TaskFailedError", "TemplateWarning", "estimate", "result", "run", "stream"),
        *("submit", "template", "validate"),
    ),
}
_NAMES = {name: module for module, names in _HOMES.items() for name in names}
_NAMES["__version__"] = "mloc_dagster"
_CALLED = {"session": ("mloc_dagster.python", "Session")}

_PUBLIC = sorted([*(each for each in _NAMES if not each.startswith("_")), *_CALLED])


def __getattr__(name: str) -> object:
    module, inside = _CALLED.get(name, (_NAMES.get(name), name))
    if module is None:
        raise AttributeError(f"module 'mloc' has no attribute {name!r}")
    found = getattr(_import_module(module), inside)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
