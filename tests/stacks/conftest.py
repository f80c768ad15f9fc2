"""What the tests of other stacks share: no network, and what happens where a stack is missing."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported


@pytest.fixture
def needs() -> Callable[..., None]:
    """Skip a test whose packages are missing; fail if TRAINAUG_REQUIRE_STACKS=1 promises them."""

    def check(*packages: str) -> None:
        missing = [name for name in packages if find_spec(name) is None]
        if missing and os.environ.get("TRAINAUG_REQUIRE_STACKS") == "1":
            pytest.fail(f"TRAINAUG_REQUIRE_STACKS=1, but there is no {', '.join(missing)}")
        if missing:
            pytest.skip("needs the extra stacks")

    return check
