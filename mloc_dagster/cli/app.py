"""Every command, its arguments and its help. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mloc_dagster import __version__
from mloc_dagster.cli.api_choice import Json, NoData, Partition
from mloc_dagster.cli.fleet_app import fleet
from mloc_dagster.cli.index_app import indexes
from mloc_dagster.cli.task_app import tasks

_TASKS, _TEMPLATES, _MODELS = "Run", "Templates", "Models"

app = typer.Typer(
    name="mloc",
    help="One YAML template in, results out: LLM tasks on Dagster.",
    epilog="Start with: mloc run demo · mloc templates list",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_templates = typer.Typer(help="List, show and copy the templates that ship.", no_args_is_help=True)
_models = typer.Typer(help="The models that ship.", no_args_is_help=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mloc {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    if context.obj:  # what this process writes is private; what only helps needs no settings
        from mloc_dagster.settings import settings

        os.umask(settings().umask)


@app.command("run", rich_help_panel=_TASKS)
def _run(
    template: Annotated[
        str | None,
        typer.Argument(help="A YAML file, or the name of a library template.", show_default=False),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="Change a value, such as spec.inference.max_tokens=64. Repeatable.",
        ),
    ] = None,
    partition: Partition = None,
    results: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where results go: a folder, or any fsspec URL."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="TASK_ID", help="Go on with a task: only missing rows are computed."),
    ] = None,
    retry_errors: Annotated[
        bool,
        typer.Option("--retry-errors", help="With --resume: also rows that ended with an error."),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="With --resume: forget its rows, and start over.")
    ] = False,
    accept_changed_model: Annotated[
        bool,
        typer.Option(
            "--accept-changed-model", help="Go on although the model has changed since: mixes both."
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only the results folder.")
    ] = False,
    as_json: Json = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No live progress.")] = False,
    no_data: NoData = False,
) -> None:
    """Run a template here and now; the results folder is printed last.

    Exit code: 0, 1 (a task failed), 2 (bad input), 130 (interrupted).
    """
    from mloc_dagster.cli.run_command import RunOptions, run

    options = RunOptions(
        template=template,
        sets=tuple(sets or ()),
        partition=partition,
        results=results,
        resume=resume,
        retry_errors=retry_errors,
        fresh=fresh,
        accept_changed_model=accept_changed_model,
        quiet=quiet,
        as_json=as_json,
        progress=not (no_progress or quiet or as_json),
        look=not no_data,
    )
    raise typer.Exit(run(options))


@app.command("sweep", rich_help_panel=_TASKS)
def _sweep(
    template: Annotated[
        str, typer.Argument(help="A YAML file, or the name of a library template.")
    ],
    grid: Annotated[
        list[str],
        typer.Option(metavar="PATH=V,V…", help="Values to try. Repeatable: all combinations."),
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a value in all. Repeatable."),
    ] = None,
    partition: Partition = None,
    results: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where results go: a folder, or any fsspec URL."),
    ] = None,
    print_only: Annotated[
        bool, typer.Option("--print", help="Print the template of the sweep, and run nothing.")
    ] = False,
    as_json: Json = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No live progress.")] = False,
) -> None:
    """Run a template once for each combination of values, as one workflow, and compare them.

    Exit code: 0, 1 (a task failed), 2 (bad input), 130 (interrupted).
    """
    from mloc_dagster.cli.sweep_command import SweepOptions, sweep

    options = SweepOptions(
        template=template,
        grid=tuple(grid),
        sets=tuple(sets or ()),
        partition=partition,
        results=results,
        print_only=print_only,
        as_json=as_json,
        progress=not (no_progress or as_json),
    )
    raise typer.Exit(sweep(options))


@app.command("batch", rich_help_panel=_TASKS)
def _batch(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="INPUT.jsonl", help="Requests in OpenAI's batch format.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", help="A hub id, a folder, or a name such as tiny-chat."),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where the answers go.")
    ] = Path("output.jsonl"),
    errors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Failed requests; OUTPUT.errors.jsonl by default."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="Name of an engine; by default the best that can run.")
    ] = None,
    shards: Annotated[int, typer.Option(help="Shards; one is fastest on one machine.")] = 1,
    error_budget: Annotated[
        float, typer.Option(help="Share of rows that may fail; by default all but one.")
    ] = 1.0,
    resume: Annotated[
        str | None, typer.Option(metavar="TASK_ID", help="Go on with this task.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget what an equal command has done already.")
    ] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Compute rows again that ended with an error.")
    ] = False,
    accept_changed_model: Annotated[
        bool,
        typer.Option(
            "--accept-changed-model", help="Go on although the model has changed since: mixes both."
        ),
    ] = False,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="As for mloc run. Repeatable."),
    ] = None,
    results: Annotated[
        str | None, typer.Option(metavar="URL", help="Where rows are kept meanwhile.")
    ] = None,
    as_json: Json = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No live progress.")] = False,
) -> None:
    """Answer a batch that was prepared for a hosted API; the files' paths are printed last.

    The same command goes on where it was stopped. Exit code: 0, 1 (every request failed, or more
    than the budget allows), 2 (bad input), 130 (interrupted).
    """
    from mloc_dagster.cli.batch_command import BatchOptions, batch

    options = BatchOptions(
        source=source,
        model=model,
        output=output,
        errors=errors,
        engine=engine,
        shards=shards,
        error_budget=error_budget,
        resume=resume,
        fresh=fresh,
        retry_errors=retry_errors,
        accept_changed_model=accept_changed_model,
        sets=tuple(sets or ()),
        results=results,
        as_json=as_json,
        progress=not (no_progress or as_json),
    )
    raise typer.Exit(batch(options))


@app.command("chat", rich_help_panel=_TASKS)
def _chat(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="As `mloc models list` names it, a task's id, a library template, a folder, or an "
            "id of the hub.",
            show_default=False,
        ),
    ],
    question: Annotated[
        str | None, typer.Argument(help="Answer this, and end.", show_default=False)
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system prompt.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is always the same answer.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of an answer, at most.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same answer.")] = None,
) -> None:
    """Talk to a model, or to what a training has made, on warm workers or in this process.

    Exit code: 0, 1 (it cannot be answered), 2 (bad input), 130 (interrupted).
    """
    from mloc_dagster.cli.chat_command import ChatOptions, chat

    options = ChatOptions(
        model=model,
        question=question,
        system=system,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
    )
    raise typer.Exit(chat(options))


@app.command("open", rich_help_panel=_TASKS, hidden=True)
@app.command("view", rich_help_panel=_TASKS)
def _view(
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK",
            help="A task's id, or its folder; all tasks by default.",
            show_default=False,
        ),
    ] = None,
    results: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where results are: a folder, or any fsspec URL."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of 127.0.0.1; a free one by default.")
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address, and open no browser.")
    ] = False,
) -> None:
    """Look at results in a browser: rows, scores, shards, trainings; `mloc open` is the same.

    Exit code: 0, 2 (there is no such task).
    """
    from mloc_dagster.cli.view_command import ViewOptions, view

    options = ViewOptions(task=task, results=results, port=port, browser=not no_browser)
    raise typer.Exit(view(options))


@app.command("validate", rich_help_panel=_TEMPLATES)
def _validate(
    files: Annotated[
        list[Path], typer.Argument(help="YAML files, or folders of them.", metavar="T.yaml…")
    ],
    as_json: Json = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    no_data: NoData = False,
) -> None:
    """Check templates: every error of every file, as file:line:col: path: message.

    Files of this machine are looked at, too: data (is it there, with the split and the column?),
    models, adapters and checkpoints.

    Exit code: 0, or 2 when there is an error.
    """
    from mloc_dagster.cli.template_commands import validate

    raise typer.Exit(validate(files, as_json=as_json, strict=strict, look=not no_data))


@app.command("estimate", rich_help_panel=_TASKS)
def _estimate(
    template: Annotated[
        str, typer.Argument(help="A YAML file, or the name of a library template.")
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="As for mloc run. Repeatable."),
    ] = None,
    partition: Partition = None,
    results: Annotated[
        str | None, typer.Option(metavar="URL", help="Where results of earlier tasks are.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a template is going to take: rows, tokens, time and cost. Runs nothing.

    Exit code: 0, or 2 when the template or its input is wrong.
    """
    from mloc_dagster.cli.estimate_command import estimate

    code = estimate(
        template, sets=sets or (), partition=partition, results=results, as_json=as_json
    )
    raise typer.Exit(code)


@app.command("schema", rich_help_panel=_TEMPLATES)
def _schema() -> None:
    """Print the JSON Schema of templates; editors complete and check with it."""
    import json

    from mloc_dagster.schema import template_json_schema

    typer.echo(json.dumps(template_json_schema(), indent=2, ensure_ascii=False))


app.add_typer(fleet)
app.add_typer(tasks)
app.add_typer(_templates, name="templates", rich_help_panel=_TEMPLATES)
app.add_typer(_models, name="models", rich_help_panel=_MODELS)
app.add_typer(indexes, name="index", rich_help_panel=_TASKS)


@_templates.command("list")
def _templates_list(as_json: Json = False) -> None:
    """List the library."""
    from mloc_dagster.cli.template_commands import list_templates

    list_templates(as_json=as_json)


@_templates.command("show")
def _templates_show(
    name: Annotated[str, typer.Argument(help="Such as core/echo, or echo.")],
) -> None:
    """Print a library template."""
    from mloc_dagster.cli.template_commands import show_template

    show_template(name)


@_templates.command("new")
def _templates_new(
    name: Annotated[str, typer.Argument(help="The new template's name.")],
    source: Annotated[
        str, typer.Option("--from", metavar="TEMPLATE", help="The library template to copy.")
    ] = "inference_single",
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write it; NAME.yaml by default."),
    ] = None,
) -> None:
    """Copy a library template under a new name; an existing file is never overwritten."""
    from mloc_dagster.cli.template_commands import new_template

    new_template(name, source, output)


@_templates.command("add")
def _templates_add(
    file: Annotated[Path, typer.Argument(metavar="T.yaml", help="The file to copy.")],
    name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Such as team/summaries; else the file's name."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Overwrite a template that was added before.")
    ] = False,
) -> None:
    """Copy a template into the library of this MLOC_HOME; prints where it lies.

    Exit code: 0, or 2 when it is not valid.
    """
    from mloc_dagster.cli.template_commands import add_template

    add_template(file, name, replace=replace)


@_templates.command("remove")
def _templates_remove(
    name: Annotated[str, typer.Argument(help="Of a template that was added.")],
) -> None:
    """Remove a template that was added; what ships stays."""
    from mloc_dagster.cli.template_commands import remove_template

    remove_template(name)


@_models.command("list")
def _models_list(as_json: Json = False) -> None:
    """List the models that ship."""
    from mloc_dagster.cli.template_commands import list_models

    list_models(as_json=as_json)


@_models.command("path")
def _models_path(
    name: Annotated[str, typer.Argument(help="Such as tiny-chat.")],
) -> None:
    """Print where a model lies."""
    from mloc_dagster.cli.template_commands import show_model_path

    show_model_path(name)
