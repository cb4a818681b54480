"""Collected only when asked for by its path: `python -m pytest tests/targets`.

Nothing heavy is imported here, because pytest reads this file in every run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness import Bundles, Runs

HERE = Path(__file__).parent
# importmode=importlib leaves these folders out of the path.
sys.path += [str(HERE), str(HERE.parent / "export")]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Environments of gigabytes are made here, so a plain `pytest` leaves this folder alone."""
    asked = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    return None if any(path.is_relative_to(HERE) for path in asked) else True


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Bundles:
    from harness import Bundles

    folder = tmp_path_factory.mktemp("bundles")
    return Bundles(folder, lambda: request.getfixturevalue("smollm2_gguf"))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    from harness import Runs

    return Runs(tmp_path_factory.mktemp)
