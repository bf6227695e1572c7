"""How much dynamic shared memory a CUDA C++ kernel is launched with, where that does not depend on the tensors' shape.

Nothing in the machine code tells. Kernels whose tiles have a fixed size are launched with a constant of the source,
which the compiler is asked for: ``CONSTANTS`` names it. The other kernels' sizes are counted by the launch plans
(``csrc/cuda/*_plan.cu``) from the shape of each call, and are not known here.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

NAMESPACE = "fastdl::cuda::"
PROBE = "fastdl_probe_"
VALUE = re.compile(rf"\.global\s+\.align\s+8\s+\.u64\s+{PROBE}(?P<index>\d+)(?:\s*=\s*(?P<value>\d+))?\s*;")


@dataclass(frozen=True)
class Constant:
    """A variable template, and which of the kernel's template arguments it takes."""

    name: str
    arguments: tuple[int, ...]


# By the kernel's name without namespace and template arguments. The launches that use these stand beside the kernels.
CONSTANTS = {
    "attention_forward_mma::kernel": Constant("attention_forward_mma::shared_bytes", (0, 1)),
    "attention_forward_wgmma::kernel": Constant("attention_forward_wgmma::shared_bytes", (1,)),
    "attention_backward_key::kernel": Constant("backward_shared_bytes", (0, 1)),
    "attention_backward_mask::kernel": Constant("backward_shared_bytes", (0, 1)),
    "attention_backward_query::kernel": Constant("backward_shared_bytes", (0, 1)),
    "pointwise_forward::kernel": Constant("pointwise_forward::shared_bytes", (0,)),
    "pointwise_input::kernel": Constant("pointwise_input::shared_bytes", (0,)),
}


def fixed_sizes(
    source: Path, kernels: Sequence[str], folder: Path, compile_to_ptx: Callable[[Path, Path], object]
) -> dict[str, int]:
    """The bytes of those of the kernels (demangled, without arguments) whose size is a constant of the source.

    ``compile_to_ptx`` compiles its first argument into its second; ``folder`` holds both for a while. Raises ValueError
    where the compiler has no answer.
    """
    expressions = {name: expression for name in kernels if (expression := _expression(name))}
    if not expressions:
        return {}
    probe, text = folder / "probe.cu", folder / "probe.ptx"
    probe.write_text(
        f'#include "{source.resolve()}"\n'
        + "".join(
            f'extern "C" __device__ unsigned long long {PROBE}{index} = {expression};\n'
            for index, expression in enumerate(expressions.values())
        ),
        encoding="utf-8",
    )
    compile_to_ptx(probe, text)
    # An initial value of zero is not written.
    values = {int(found["index"]): int(found["value"] or 0) for found in VALUE.finditer(text.read_text("utf-8"))}
    if len(values) != len(expressions):
        raise ValueError(f"{source.name}: the compiler gave {len(values)} of {len(expressions)} sizes of shared memory")
    return {name: values[index] for index, name in enumerate(expressions)}


def _expression(kernel: str) -> str:
    name, _, arguments = kernel.removeprefix(NAMESPACE).rstrip(">").partition("<")
    constant = CONSTANTS.get(name)
    if constant is None or not kernel.startswith(NAMESPACE):
        return ""
    values = arguments.split(", ")
    return f"{NAMESPACE}{constant.name}<{', '.join(values[index] for index in constant.arguments)}>"
