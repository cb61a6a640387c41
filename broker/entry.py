"""The programs' first step: what they need is imported, which takes seconds on a small board.

Ctrl-C then ends a program as it ends those of the system, without a word; from `broker.commandline.run` on
it is answered with a sentence.
"""

import importlib
import signal


def _start(module: str) -> None:
    # Where it is ignored (nohup), it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    importlib.import_module(module).main()


def edge_client() -> None:
    """Run ``edge-client``."""
    _start("edge.cli")


def edge_aggregator() -> None:
    """Run ``edge-aggregator``."""
    _start("broker.aggregator.cli")


def edge_fleet() -> None:
    """Run ``edge-fleet``."""
    _start("edge.fleet.cli")


def firmware_tools() -> None:
    """Run ``firmware-tools``."""
    _start("firmware_tools.cli")
