"""Which execution provider runs a graph, and what really ran where.

The native graph computes in float32, which ONNX Runtime's CUDA attention does not take
(docs/OperatorKernels.md: GroupQueryAttention on CUDA is float16 or bfloat16), and
float16 graphs (q4f16) were not run there for lack of a GPU: this version runs on the CPU and says
so when something else was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.errors import NotFound, Refused
from edgellm.stream import Placement

CPU = "CPUExecutionProvider"
# What people type, and what ONNX Runtime calls it.
NAMES = {"cpu": CPU, "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
SUPPORTED = (CPU,)


@dataclass(frozen=True, slots=True)
class Choice:
    """The provider to use, and a line for the user when it is not the one that was asked for."""

    provider: str
    notice: str | None = None


def choose(wanted: str, required: bool, installed: Sequence[str]) -> Choice:
    """The provider for `wanted` ("auto", a short name or ONNX Runtime's own).

    NotFound for a name nobody knows; Refused when `required` and it would not be the one used.
    """
    if wanted == "auto":
        return Choice(CPU)
    name = NAMES.get(wanted.lower(), wanted)
    if name not in (*NAMES.values(), *installed):
        raise NotFound(f"no execution provider {wanted!r}; there are: {', '.join(NAMES)}")
    if name in SUPPORTED:
        return Choice(name)
    why = (
        f"{name} is not in the installed onnxruntime"
        if name not in installed
        else f"{name} has no float32 attention, and float16 graphs are not tried on it yet"
    )
    if required:
        raise Refused(f"{why}; leave --require-ep out to run on the CPU")
    return Choice(CPU, f"{why}: running on the CPU")


def placement(session: Any) -> dict[str, Placement]:
    """Nodes of each provider, read back from ONNX Runtime after loading.

    `weight_share` is the share of the matrix products: ONNX Runtime reports no bytes.
    """
    nodes: dict[str, int] = {}
    heavy: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            nodes[part.ep_name] = nodes.get(part.ep_name, 0) + 1
            if "MatMul" in node.op_type:
                heavy[part.ep_name] = heavy.get(part.ep_name, 0) + 1
    total = sum(heavy.values()) or 1
    return {name: Placement(count, heavy.get(name, 0) / total) for name, count in nodes.items()}
