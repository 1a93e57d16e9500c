"""Tests here need an NVIDIA GPU; without one they are not collected."""

from __future__ import annotations

from pathlib import Path

collect_ignore_glob = [] if Path("/dev/nvidiactl").exists() else ["test_*.py"]
