"""``fastdl tune``: kernel sizes and choices of backends from measurements on the machine at hand.

`store` keeps them and stands on `fastdl.native` alone: `fastdl.kernels.tuned` and `fastdl.ops.measured` read it. All
other modules here belong to the command, which is imported when it is asked for.
"""
