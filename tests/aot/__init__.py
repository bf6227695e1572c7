"""The ahead-of-time gate: every kernel that ships is compiled for every GPU architecture, without a GPU.

What its machine code uses (registers, shared memory, local memory, widths of loads and stores, matrix instructions) is
held to limits that stand beside the kernel, and recorded in ``docs/kernels.md``: ``python -m tests.aot`` writes it.
"""
