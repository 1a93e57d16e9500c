"""Writes the dashboards as JSON for Grafana's provisioning.

python deploy/grafana/generate.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from boards import DASHBOARDS

FOLDER = Path(__file__).resolve().parent / "dashboards"


def texts() -> dict[Path, str]:
    """File to content."""
    return {FOLDER / f"{board.uid}.json": json.dumps(board.as_json(), indent=1) + "\n" for board in DASHBOARDS}


def main() -> None:
    """Write what is stale; with --check, only say so."""
    wanted = texts()
    stale = [file for file, text in wanted.items() if not file.exists() or file.read_text() != text]
    if "--check" in sys.argv:
        sys.exit(f"not what generate.py writes: {', '.join(file.name for file in stale)}" if stale else 0)
    FOLDER.mkdir(exist_ok=True)
    for file, text in wanted.items():
        file.write_text(text)


if __name__ == "__main__":
    main()
