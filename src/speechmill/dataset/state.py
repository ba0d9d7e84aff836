"""The state that all builds of a sink share: source, folder rule, recipe."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from speechmill.dataset.layout import SOURCE_KEY, recipe_key
from speechmill.dataset.schema import SCHEMA_VERSION
from speechmill.dataset.stated import json_object
from speechmill.dataset.swap import stored, update
from speechmill.errors import (
    ConflictError,
    DatasetError,
    NotFoundError,
    RecipeChangedError,
    SourceChangedError,
)
from speechmill.recipe import Recipe
from speechmill.storage import Store

__all__ = [
    "Claim",
    "agree_on_source",
    "check_source",
    "current_recipe",
    "move_recipe",
    "read_recipe",
    "read_state",
    "recipe_moved",
    "sink_state",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a job wants the sink's rows to be of, how sorted and made, and what it may change."""

    source_url: str
    folder: str
    partition_by: str = "folder"
    recipe: Recipe
    rebuild: bool = False
    source_moved: bool = False


def read_state(store: Store) -> dict[str, Any] | None:
    """Read ``source.json``: source, folder, recipe, schema_version, created; None in a new sink."""
    data = stored(store, SOURCE_KEY)
    return None if data is None else _parse(data)


def sink_state(store: Store) -> dict[str, Any]:
    """Read the state that the sink's builds share.

    Raises:
        DatasetError: there is no dataset.
    """
    state = read_state(store)
    if state is None:
        raise DatasetError(f"there is no dataset in {store.url}; speechmill build makes one")
    return state


def _parse(data: bytes) -> dict[str, Any]:
    try:
        state = json_object(data)
        version, *texts = (state[key] for key in ("schema_version", "source", "folder", "recipe"))
    except (ValueError, KeyError) as error:
        raise _damaged(repr(error)) from None
    if not all(isinstance(text, str) for text in texts):
        raise _damaged("source, folder and recipe must be texts")
    if version != SCHEMA_VERSION:
        raise DatasetError(
            f"the sink is of schema version {version!s:.20}, this Speechmill writes "
            f"{SCHEMA_VERSION}: use the Speechmill that made it, or another sink"
        )
    return state


def _damaged(problem: str) -> DatasetError:
    return DatasetError(
        f"{SOURCE_KEY} of the sink cannot be read ({problem}); restore it from a backup"
    )


def read_recipe(store: Store, recipe: str) -> Recipe | None:
    """Read a recipe of this sink in full; None where it is not stored, or another one is there."""
    try:
        found = Recipe.from_json(store.get(recipe_key(recipe)).data)
    except (NotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if found.id == recipe else None


def current_recipe(store: Store) -> str | None:
    """Read the id of the sink's current recipe, which its rows should have; None in a new sink."""
    state = read_state(store)
    return None if state is None else str(state["recipe"])


def check_source(store: Store, state: Mapping[str, Any] | None, job: Claim) -> bool:
    """Check a job against ``source.json``. Returns whether it must be rewritten for the job.

    Raises:
        DatasetError: the sink's recordings are sorted into folders by another rule; that rule says
            which part a recording belongs to, so it cannot change.
        SourceChangedError: the rows come from another source, and ``source_moved`` is not set.
        RecipeChangedError: they were made in another way, and ``rebuild`` is not set.
    """
    if state is None:
        return True
    if state["source"] != job.source_url and not job.source_moved:
        raise SourceChangedError(
            f"the sink {store.url} holds recordings of {state['source']}, not of {job.source_url}; "
            "use another sink, or --source-moved if it is the same corpus in a new place"
        )
    if (rule := state["folder"]) != job.folder:
        raise DatasetError(
            f"the sink {store.url} sorts recordings into folders by {rule!r}, not by "
            f"{job.folder!r}, and that cannot change: use --folder {rule!r} or another sink"
        )
    if (rule := state.get("partition_by", "folder")) != job.partition_by:
        raise DatasetError(
            f"the sink {store.url} is partitioned by {rule!r}, not by {job.partition_by!r}, and "
            f"that cannot change: use --partition-by {rule} or another sink"
        )
    if state["recipe"] != job.recipe.id and not job.rebuild:
        kept = read_recipe(store, str(state["recipe"]))
        differences = kept.differences(job.recipe) if kept else ["(its recipe is not kept)"]
        raise RecipeChangedError(
            f"the rows of {store.url} were made in another way (sink → this job):\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\nuse the sink's options, another sink, or --rebuild to replace its rows"
        )
    return bool(state["source"] != job.source_url or state["recipe"] != job.recipe.id)


def agree_on_source(store: Store, job: Claim) -> None:
    """Record the source, folder rule and recipe, this one before the state that names it.

    Raises:
        DatasetError, SourceChangedError, RecipeChangedError: see ``check_source``.
    """
    _keep_recipe(store, job.recipe)

    def change(data: bytes | None) -> bytes | None:
        state = _parse(data) if data is not None else None
        if not check_source(store, state, job):
            return None
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        new = {
            "schema_version": SCHEMA_VERSION,
            "source": job.source_url,
            "folder": job.folder,
            "partition_by": job.partition_by,
            "recipe": job.recipe.id,
            "created": state["created"] if state else now,
        }
        return json.dumps(new, indent=2, ensure_ascii=False).encode()

    update(store, SOURCE_KEY, change)


def move_recipe(store: Store, old: str, recipe: Recipe) -> None:
    """Replace the sink's current recipe ``old`` by ``recipe``.

    Raises:
        RecipeChangedError: the current recipe is neither of the two.
    """
    _keep_recipe(store, recipe)

    def change(data: bytes | None) -> bytes | None:
        state = _parse(data) if data is not None else {"recipe": None}
        if state["recipe"] == recipe.id:
            return None
        if state["recipe"] != old:
            raise recipe_moved(store)
        return json.dumps({**state, "recipe": recipe.id}, indent=2, ensure_ascii=False).encode()

    update(store, SOURCE_KEY, change)


def recipe_moved(store: Store) -> RecipeChangedError:
    """Say that another command has changed what makes the rows, while this one was at work."""
    return RecipeChangedError(
        f"what makes the rows of {store.url} was changed by another command meanwhile: "
        "run this one again"
    )


def _keep_recipe(store: Store, recipe: Recipe) -> None:
    with contextlib.suppress(ConflictError):  # it is there: its name is its content's hash
        store.put(recipe_key(recipe.id), recipe.to_json().encode(), if_absent=True)
