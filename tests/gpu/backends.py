"""Builds what is to be tested: one row for each backend, failed where it should be there and is not."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

from tests.gpu import record


def main() -> int:
    """Prints the doctor's report, and records whether ``triton`` and ``cuda`` are there; 1 where one is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.backends")
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args()
    record.begin(options.record)
    record.write(options.record, "", "collected", 2)

    import fastdl
    from fastdl import doctor, native

    warnings.simplefilter("ignore", native.FastdlWarning)  # the same reason stands in the record
    status = 0
    for name in ("triton", "cuda"):
        began = time.monotonic()
        found = fastdl.backends()[name]
        # Without an nvcc there is nothing to test; with one that fails, or without Triton, there is something wrong.
        absent = name == "cuda" and native.load("cuda").absent
        outcome = "passed" if found.available else "skipped" if absent else "failed"
        record.write(options.record, name, outcome, time.monotonic() - began, found.reason)
        status |= outcome == "failed"
    print(json.dumps(doctor.report(), indent=1))
    return status


if __name__ == "__main__":
    sys.exit(main())
