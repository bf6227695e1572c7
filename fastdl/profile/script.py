"""Running a user's script under the profiler, as ``python script.py`` would run it."""

from __future__ import annotations

import logging
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastdl.profile.session import Profile

INTERRUPTED = 130
FAILED = 1


def run_script(path: Path, arguments: Sequence[str], taken: Profile) -> int:
    """Runs a script as ``__main__`` within a profile, and returns the exit status that Python would have ended with.

    Its exception is printed as Python prints one. Interrupted from the keyboard it ends with 130, and what was seen
    until then is in the profile all the same.

    Raises OSError where the script cannot be read.
    """
    path.read_bytes()  # an error here is the command's user's, not the script's
    with _as_script_sees_it(path, arguments), taken:
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as stop:
            return status_of(stop)
        except KeyboardInterrupt:
            print("\nInterrupted; what was seen until then:", file=sys.stderr)
            return INTERRUPTED
        except BaseException as error:
            print_exception(error, path)
            return FAILED
    return 0


def status_of(stop: SystemExit) -> int:
    """As Python ends on it: None is 0, and what is no number is printed and 1."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code
    print(stop.code, file=sys.stderr)
    return FAILED


def print_exception(error: BaseException, path: Path) -> None:
    """With the script's own frames, from its first on."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != str(path):
        frames = frames.tb_next
    traceback.print_exception(type(error), error, frames or error.__traceback__)


@contextmanager
def _as_script_sees_it(path: Path, arguments: Sequence[str]) -> Iterator[None]:
    """``sys.argv``, the folder that its imports come from, and a log that nobody has configured."""
    argv, search = sys.argv, list(sys.path)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.resolve().parent))
    try:
        root.handlers[:] = []
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        sys.argv = argv
        sys.path[:] = search
