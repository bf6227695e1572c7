"""What needs a GPU, and the command that runs all of it: ``python -m tests.gpu``, behind ``make gpu-test``."""
