from __future__ import annotations

import sys
from pathlib import Path

# importmode=importlib leaves these folders out of the path.
sys.path += [str(Path(__file__).parent), str(Path(__file__).parent.parent / "servers")]
