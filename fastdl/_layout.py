"""Where the folders beside ``fastdl/`` are found.

``kernels/`` and ``bench/`` lie at the top of the repository and are imported as ``fastdl.kernels`` and
``fastdl.bench``. An installed package, editable or not, knows that from ``pyproject.toml``. A plain copy of the tree on
``PYTHONPATH`` knows it from here, so that the same code runs on a machine where nothing may be installed.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent
SIBLINGS = {"fastdl.kernels": "kernels", "fastdl.bench": "bench"}


class SiblingFinder(importlib.abc.MetaPathFinder):
    """Finds ``fastdl.kernels`` and ``fastdl.bench`` in the folders beside ``fastdl/``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        folder = SIBLINGS.get(fullname)
        if folder is None:
            return None
        init = CHECKOUT / folder / "__init__.py"
        if not init.is_file():
            return None
        return importlib.util.spec_from_file_location(fullname, init, submodule_search_locations=[str(init.parent)])


def find_sibling_folders() -> None:
    """Make ``fastdl.kernels`` and ``fastdl.bench`` importable from a plain copy of the tree.

    Does nothing where the package is installed with its kernels inside. The finder stands first on ``sys.meta_path``:
    the finder of an editable installation would otherwise give a copy of the tree the kernels of another checkout.
    """
    if (PACKAGE / "kernels").is_dir() or any(isinstance(finder, SiblingFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, SiblingFinder())
