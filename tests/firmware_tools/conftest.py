"""Fixtures for tests of the C core."""

import pytest

from tests.firmware_tools import core


@pytest.fixture(scope="session")
def core_library() -> None:
    """Build the core before the first test that needs it: hypothesis times its examples."""
    core.library()
