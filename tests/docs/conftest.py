"""Makes docs/snippets importable under the names that the pages use."""

import sys
from pathlib import Path

SNIPPETS = Path(__file__).parents[2] / "docs" / "snippets"
sys.path.append(str(SNIPPETS))
