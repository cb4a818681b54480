"""Gemma, Phi-3 and Qwen3-MoE against torch and transformers, which read the same folders.

Where the two packages are not installed, these tests say so and are skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# importmode=importlib leaves this folder out of the path.
sys.path.append(str(Path(__file__).parent.parent / "export"))

import arch_checks
import tiny_archs
from arch_checks import IDS
from tiny_archs import GEMMA2, GEMMA3, LONG_PHI3, PHI3, QWEN3_MOE

from edgellm_export import fields, reference

# Both packages warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")

LAYER_TYPES = ["full_attention", "sliding_attention", "full_attention"]
BY_LAYER = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
}
NEW_GEMMA3 = {
    **{key: value for key, value in GEMMA3.items() if "rope" not in key and "pattern" not in key},
    "layer_types": LAYER_TYPES,
    "rope_parameters": BY_LAYER,
    "final_logit_softcapping": 3.0,
}
NEW_QWEN3_MOE = {
    **{key: value for key, value in QWEN3_MOE.items() if key != "num_experts"},
    "num_local_experts": 8,
    "norm_topk_prob": False,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [],
}
MODELS = {
    "gemma2": GEMMA2,
    "gemma2-layer-types-no-caps": {
        **GEMMA2,
        "layer_types": LAYER_TYPES,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    "gemma3_text": GEMMA3,
    "gemma3_text-transformers-5": NEW_GEMMA3,
    "phi3": PHI3,
    "phi3-longrope": LONG_PHI3,
    # The text is longer than the original window: the long factors hold.
    "phi3-longrope-beyond": {**LONG_PHI3, "original_max_position_embeddings": 16},
    "qwen3_moe": QWEN3_MOE,
    "qwen3_moe-transformers-5": NEW_QWEN3_MOE,
    "qwen3_moe-window": {**QWEN3_MOE, "use_sliding_window": True},
}


def logits_of_transformers(folder: Path) -> arch_checks.Float32:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        found: arch_checks.Float32 = loaded(torch.tensor([IDS])).logits[0].numpy()
    return found


def error(found: arch_checks.Float32, wanted: arch_checks.Float32) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_and_the_graph_equal_transformers(
    tmp_path: Path, name: str, record_property: Any
) -> None:
    config: Mapping[str, Any] = MODELS[name]
    folder = tiny_archs.write(tmp_path / "torch", config)
    wanted = logits_of_transformers(folder)
    built = arch_checks.built(tmp_path, config, "fp32")
    ours = reference.forward(built.config, built.stored, IDS)
    graph = arch_checks.one_pass(arch_checks.session(built))
    print(f"{name}: reference {error(ours, wanted):.1e}, graph {error(graph, wanted):.1e}")
    record_property("error", error(graph, wanted))
    assert error(ours, wanted) < 1e-5
    assert error(graph, wanted) < 1e-5


@pytest.mark.parametrize("hidden", [640, 1152, 2304, 2560, 3072, 3584, 3840])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_embedding_is_scaled_by_what_torch_rounds_to(hidden: int, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    wanted = float(torch.tensor(hidden**0.5).to(getattr(torch, dtype)))
    config = {"hidden_size": hidden, "dtype": dtype}
    assert fields.embedding_scale(config) == wanted
    assert float(reference.parts.rounded_root(config)) == wanted
