from __future__ import annotations

import sys
from pathlib import Path

# importmode=importlib leaves these folders out of the path; tests of the runtime take the tiny
# models too, and so do processes of their own.
sys.path += [str(Path(__file__).parent), str(Path(__file__).parent.parent / "hub")]
