"""`bench` is not installed: the tests here take it from the checkout."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
