from __future__ import annotations

import sys
from pathlib import Path

# importmode=importlib leaves this folder out of the path; tests of the runtime take these models
# too, and so do processes of their own.
sys.path.append(str(Path(__file__).parent))
