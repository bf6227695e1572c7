"""What every test shares: threads, the start state of the package, and the skipping of tests that need a GPU."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator

# The tests choose their backends themselves, and know nothing of what was measured on the machine.
os.environ.pop("FASTDL_BACKEND", None)
os.environ["FASTDL_TUNED"] = "0"

import pytest
import torch

if sys.platform == "linux":
    PROCESSORS = len(os.sched_getaffinity(0))
else:
    PROCESSORS = os.cpu_count() or 1

# Each xdist worker takes its share of the processors: two workers with two threads each on two cores are slower than
# either alone.
torch.set_num_threads(max(1, PROCESSORS // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))

with contextlib.suppress(ImportError):
    import hypothesis

    # Timings are never asserted; a worker that compiles or waits is no failure.
    hypothesis.settings.register_profile("fastdl", deadline=None, print_blob=True)
    hypothesis.settings.load_profile("fastdl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For small networks: more threads are no faster, and much slower where another process wants the same cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each of the backends for tensors on the CPU in turn, asked for."""
    import fastdl
    from tests.support.backends import BACKENDS_UNDER_TEST

    BACKENDS_UNDER_TEST[request.param].device()
    with fastdl.use_backend(request.param):
        yield request.param


@pytest.fixture(scope="session")
def compiler() -> str:
    """The system's C++ compiler; tests that compile are skipped where there is none."""
    for name in ("g++", "clang++", "c++"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("no C++ compiler on this machine")
