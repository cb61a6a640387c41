"""Where the C core is, and how its files are compiled."""

from importlib import resources
from pathlib import Path

SOURCES = (
    "src/best.c",
    "src/cbor.c",
    "src/messages.c",
    "src/model.c",
    "src/pass.c",
    "src/random.c",
    "src/score.c",
    "src/status.c",
    "src/table.c",
    "src/taste.c",
    "src/update.c",
)
C_FLAGS = ("-std=c99", "-ffp-contract=off")
"""Without fused multiplications results are the same everywhere; see `firmware_tools.arithmetic`."""
WARNINGS = (
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wconversion",
    "-Wshadow",
    "-Wcast-align",
    "-Wstrict-prototypes",
)


def core_directory() -> Path:
    """Give the folder of the C core, as it is installed."""
    return Path(str(resources.files("firmware_tools"))) / "c"
