"""The tests of the C core once more, under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.firmware_tools import core

_TESTS = sorted(path for path in Path(__file__).parent.glob("test_c_*.py") if path != Path(__file__))


def _runtime() -> str | None:
    """Give the path of the sanitizer's runtime, which Python must load first; None where there is none."""
    if shutil.which("cc") is None:
        return None
    found = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    return found if Path(found).is_absolute() else None


@pytest.mark.skipif(core.SANITIZED, reason="this is that run")
@pytest.mark.skipif(_runtime() is None, reason="the C compiler has no AddressSanitizer: apt-get install gcc")
def test_the_core_is_clean_under_sanitizers() -> None:
    """No access beyond a piece of memory, no overflow, no misaligned or undefined operation."""
    environment = {
        **os.environ,
        "PFEDREC_C_SANITIZE": "1",
        "LD_PRELOAD": str(_runtime()),
        # Python itself frees little at its end.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *map(str, _TESTS)],
        env=environment,
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
