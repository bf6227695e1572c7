"""Recipes: a model of the literature with the training that suits it, and pictures of what it learned.

A recipe joins by a module with a frozen dataclass ``Options``, which is its command line, and a function
``run(options)`` that returns the folder of the results, and by a line in ``RECIPES``; one that can explain itself by a
second such module, whose ``run`` returns the picture's file, and a line in ``EXPLANATIONS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["EXPLANATIONS", "RECIPES", "Recipe", "load_explanation", "load_recipe"]

RECIPES = {"vit": ("fastdl.recipes.vit", "a Vision Transformer on small images (arXiv:2010.11929)")}
"""What can be trained, by name: its module, and a line that says what it is."""

EXPLANATIONS = {"vit": ("fastdl.recipes.vit_picture", "a picture of what a Vision Transformer looks at")}
"""What can be explained, likewise."""


@dataclass(frozen=True)
class Recipe:
    """The dataclass of the options, and the function that takes an instance and returns what it has written."""

    name: str
    options: type[Any]
    run: Callable[[Any], Path]


def load_recipe(name: str) -> Recipe:
    """Return the recipe called ``name``; raises ValueError for an unknown one."""
    return _load(name, RECIPES, "train")


def load_explanation(name: str) -> Recipe:
    """Return the explanation of models of the kind ``name``; raises ValueError for an unknown one."""
    return _load(name, EXPLANATIONS, "explain")


def _load(name: str, table: dict[str, tuple[str, str]], verb: str) -> Recipe:
    if name not in table:
        raise ValueError(f"there is no model {name!r} to {verb}; there is {', '.join(table)}")
    module = importlib.import_module(table[name][0])
    return Recipe(name, module.Options, module.run)
