"""Lets the tests of this folder share `random_signals` and `slow_rules`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
