"""What a kernel compiles to: its registers, shared memory, occupancy and instructions, read from machine code.

``fastdl inspect`` is made of it (``command.py``), and so are the tests that hold every kernel to its limits
(``tests/aot``). No GPU is needed. Importing this package needs neither Triton nor nvcc: ``triton_code.missing()`` and
``cuda_code.missing()`` say what is missing to compile. Importing ``fastdl`` does not import it.
"""
