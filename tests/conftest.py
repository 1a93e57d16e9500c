"""What all tests share: none of them touches the state directory of whoever runs them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_state_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers that tests start without `--state-dir` keep their state here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
