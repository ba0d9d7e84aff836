"""What a process and a sink settle before rows are made: source, recipe, compute type."""

from __future__ import annotations

from speechmill.dataset.reader import stored_schema
from speechmill.dataset.state import agree_on_source, check_source, read_recipe, read_state
from speechmill.errors import DatasetError
from speechmill.job import Job
from speechmill.pipeline.resources import Tools, forget_tools, open_tools

__all__ = ["agree", "check", "settled_tools"]


def settled_tools(job: Job) -> Tools:
    """The job's tools, with the compute type that the sink's recipe has settled on."""
    forget_tools()
    tools = open_tools(job)
    state = read_state(tools.sink)
    if job.compute_type != "auto" or state is None:
        return tools
    recipe = read_recipe(tools.sink, state["recipe"])
    kept = recipe.choices.get("transcriber", {}).get("compute_type") if recipe else None
    if kept is None or kept == tools.transcriber.recipe.get("compute_type"):
        return tools
    return open_tools(job.model_copy(update={"compute_type": kept}))


def check(tools: Tools) -> None:
    """That there is a source, and that the sink's rows are of it and of this recipe.

    Nothing is written yet: a mistyped source must leave no trace in the sink.

    Raises:
        StorageError: there is no source, or the sink cannot be read.
        DatasetError: see ``check_source``.
    """
    next(iter(tools.source.list()), None)
    state = read_state(tools.sink)
    check_source(
        tools.sink,
        state,
        tools.source.url,
        tools.job.folder,
        tools.recipe,
        partition_by=tools.job.partition_by,
        rebuild=tools.job.rebuild,
        source_moved=tools.job.source_moved,
    )
    if state is not None and state["recipe"] != tools.recipe.id:
        _check_token_types(tools)


def _check_token_types(tools: Tools) -> None:
    """That a rebuild keeps the types of the token columns: readers of a half rebuilt dataset could
    not put two types into one column."""
    stored = stored_schema(tools.sink)
    for column in tools.schema.names:
        if not column.startswith("token") or stored is None or column not in stored.names:
            continue
        old, new = stored.field(column).type, tools.schema.field(column).type
        if old != new:
            raise DatasetError(
                f"the column {column} of {tools.sink.url} is {old}, this job makes it {new}; a "
                "rebuild cannot change that: use another sink"
            )


def agree(tools: Tools) -> None:
    """Record in the sink where its rows come from and what makes them.

    Raises:
        DatasetError: others think otherwise; see ``check_source``.
    """
    agree_on_source(
        tools.sink,
        tools.source.url,
        tools.job.folder,
        tools.recipe,
        partition_by=tools.job.partition_by,
        rebuild=tools.job.rebuild,
        source_moved=tools.job.source_moved,
    )
