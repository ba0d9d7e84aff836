"""What made a row: every choice that shapes its values, and the id that stands for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Recipe"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every choice that shapes the rows' values, as JSON values.

    ``made_by`` says in words what the choices say in digests (model, engine, versions); it is
    kept beside them and shapes nothing.
    """

    choices: Mapping[str, Any]
    made_by: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """What the rows' column ``recipe`` holds: 16 hexadecimal digits."""
        canonical = json.dumps(self.choices, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The recipe as it is kept in the sink."""
        kept = {"made_by": dict(self.made_by), "choices": self.choices}
        return json.dumps(kept, sort_keys=True, indent=2, ensure_ascii=False)

    @staticmethod
    def from_json(text: str | bytes) -> Recipe:
        """The inverse of ``to_json``; ValueError, KeyError or TypeError for other JSON."""
        kept = json.loads(text)
        choices, made_by = kept["choices"], kept["made_by"]
        if not (isinstance(choices, dict) and isinstance(made_by, dict)):
            raise TypeError("choices and made_by must be objects")
        recipe = Recipe(choices, made_by)
        recipe.to_json().encode()  # it may have text that is no Unicode: a ValueError
        return recipe

    def differences(self, other: Recipe) -> list[str]:
        """What differs, one line a choice, as ``path: this → other``."""
        mine, theirs = dict(_flat(self.choices)), dict(_flat(other.choices))
        return [
            f"{path}: {json.dumps(mine.get(path))} → {json.dumps(theirs.get(path))}"
            for path in sorted(mine.keys() | theirs.keys())
            if mine.get(path) != theirs.get(path)
        ]


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [
            leaf
            for key, inner in value.items()
            for leaf in _flat(inner, f"{path}.{key}" if path else str(key))
        ]
    return [(path, value)]
