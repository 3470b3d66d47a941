"""Makes the simulation and the driver importable for the tests of the decision core."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
