"""``edge-client`` called as its entry point calls it: what a call leaves."""

import re
from collections.abc import Callable
from typing import NamedTuple

from broker.exit_codes import ExitCode


class Outcome(NamedTuple):
    """What a call has left."""

    code: int
    out: str
    err: str


Call = Callable[..., Outcome]


def assert_refused(found: Outcome, code: ExitCode, *words: str) -> None:
    """Check the code, and that there is one sentence with these words on stderr and nothing on stdout."""
    assert (found.code, found.out) == (code, "")
    for word in words:
        assert word in found.err
    if code is not ExitCode.USAGE:
        assert re.fullmatch(r"edge-client: [^\n]+\n", found.err)
