from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "export"))

import tiny_models as tiny

from edgellm_export.checkpoint.open import open_checkpoint


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny model: the exact import of a Q4_1 file."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.make_bundle(tiny.write_gguf(folder / "m.gguf", tiny.WIDE_HEADS), folder / "tiny-llama")
    return folder / "tiny-llama"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tiny.Built:
    """Graphs of a tiny model in float32, and its weights for the numpy forward pass."""
    folder = tmp_path_factory.mktemp("built")
    source = tiny.write_folder(folder / "source", tiny.TINY)
    return tiny.build(open_checkpoint(source), "fp32", folder / "out")
