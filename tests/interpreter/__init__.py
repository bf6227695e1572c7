"""The Triton kernels under Triton's interpreter, each suite in a process of its own (see `test_interpreter`)."""
