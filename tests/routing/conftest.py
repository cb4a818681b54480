from __future__ import annotations

import sys
from pathlib import Path

# importmode=importlib leaves this folder out of the path.
sys.path.append(str(Path(__file__).parent))
