"""Which backend was the fastest on which GPU; written by ``python -m bench choose`` from results of ``make gpu-bench``.

op -> "compute capability, dtype, layout, size class" -> backend. Empty: no GPU has measured yet.
"""

CHOICES: dict[str, dict[str, str]] = {}
