"""Benchmarks, one module per op, imported as ``fastdl.bench`` (in a checkout also run as ``python -m bench``)."""
