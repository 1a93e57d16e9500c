"""The dashboards themselves."""

from __future__ import annotations

from boards.batching import BATCHING
from boards.cache import CACHE
from boards.engines import ENGINES
from boards.process import PROCESS
from boards.quality import QUALITY
from boards.service import SERVICE

DASHBOARDS = (SERVICE, BATCHING, ENGINES, CACHE, PROCESS, QUALITY)
