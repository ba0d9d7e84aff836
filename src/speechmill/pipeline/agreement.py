"""What a process and a sink settle before rows are made: source, recipe, compute type."""

from __future__ import annotations

from speechmill.dataset.measured import agree_on_measures
from speechmill.dataset.reader import stored_schema
from speechmill.dataset.state import Claim, agree_on_source, check_source, read_recipe, read_state
from speechmill.errors import DatasetError
from speechmill.job import Job
from speechmill.measures.columns import columns_of
from speechmill.pipeline.resources import Resources, forget_resources, open_resources

__all__ = ["agree", "check", "settled_resources"]


def settled_resources(job: Job) -> Resources:
    """Open the job's resources anew, with the compute type that the sink's recipe settled on."""
    forget_resources()
    resources = open_resources(job)
    state = read_state(resources.sink)
    if job.compute_type != "auto" or state is None:
        return resources
    recipe = read_recipe(resources.sink, state["recipe"])
    kept = recipe.choices.get("transcriber", {}).get("compute_type") if recipe else None
    if kept is None or kept == resources.transcriber.recipe.get("compute_type"):
        return resources
    return open_resources(job.model_copy(update={"compute_type": kept}))


def _claim(resources: Resources) -> Claim:
    return Claim(
        source_url=resources.source.url,
        folder=resources.job.folder,
        partition_by=resources.job.partition_by,
        recipe=resources.recipe,
        rebuild=resources.job.rebuild,
        source_moved=resources.job.source_moved,
    )


def check(resources: Resources) -> None:
    """Check that there is a source, and that the sink's rows are of it and of this recipe.

    Nothing is written yet: a mistyped source must leave no trace in the sink.

    Raises:
        StorageError: there is no source, or the sink cannot be read.
        DatasetError: see ``check_source``.
    """
    next(iter(resources.source.list()), None)
    state = read_state(resources.sink)
    check_source(resources.sink, state, _claim(resources))
    if state is not None and state["recipe"] != resources.recipe.id:
        _check_token_types(resources)


def _check_token_types(resources: Resources) -> None:
    """Refuse a rebuild that changes the type of a token column: readers of a half rebuilt dataset
    could not put two types into one column."""
    stored = stored_schema(resources.sink)
    for column in resources.schema.names:
        if not column.startswith("token") or stored is None or column not in stored.names:
            continue
        old, new = stored.field(column).type, resources.schema.field(column).type
        if old != new:
            raise DatasetError(
                f"the column {column} of {resources.sink.url} is {old}, this job makes it {new}; a "
                "rebuild cannot change that: use another sink"
            )


def agree(resources: Resources) -> None:
    """Record in the sink where its rows come from, what makes them, and what they are measured by.

    Raises:
        DatasetError: others think otherwise; see ``check_source``.
    """
    agree_on_measures(resources.sink, tuple(columns_of(one) for one in resources.measures))
    agree_on_source(resources.sink, _claim(resources))
