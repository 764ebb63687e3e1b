"""Imported where commands are forked from: Hydra has found its plugins and composed the small cell's words once."""

import sys
from pathlib import Path

from peftbench.config import compose

compose.cell_from(["model=bert_tiny", "task=sst2", "data=sample", "tracker=none"])
if (here := str(Path(__file__).parent)) in sys.path:
    sys.path.remove(here)  # a command knows nothing of the tests
