from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# importmode=importlib leaves this folder out of the path; the stand-ins are a module of their own
# because other processes import them too.
sys.path.append(str(Path(__file__).parent))

from hub_fakes import Notes, Packer, Server, serving

from edgellm.hub.store import Store


@pytest.fixture
def serve() -> Iterator[Callable[[], Server]]:
    with serving() as start:
        yield start


@pytest.fixture
def server(serve: Callable[[], Server]) -> Server:
    return serve()


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def packer() -> Packer:
    return Packer()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")
