"""A model as a project in C for one board: sources, golden vectors, self-test, build files.

What is written is deterministic: the same model and options give the same bytes. Building and measuring it
is `firmware_tools.measuring`'s.
"""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np

from broker.errors import DataError, InputError
from broker.protocol.modelfile import Model, model_bytes
from broker.storage import make_directory, read_file, write_atomically
from firmware_tools.ccore import SOURCES, core_directory
from firmware_tools.csource import golden_files, model_files
from firmware_tools.golden import Golden, make_golden
from firmware_tools.targets import Target
from trainer.integers import quantise_table
from trainer.params import MAX_DIM, Floats, initial_score_function

Quantisation = Literal["int8", "float32"]
QUANTISATIONS: tuple[Quantisation, ...] = ("int8", "float32")
_PORTS = ("arm.c", "riscv.c", "host.c")
INTERACTIONS = 100
"""Of the user in the self-test and in the measured application."""


def read_table(path: Path, items: int | None = None) -> Floats:
    """Read the item table of a ``model.npz``, all of it or its first rows; shape (n_items, dim), float32.

    The first rows and not any others: so they keep their numbers, and updates fit the fleet's table.

    Raises
    ------
    FileUnreadableError, DataError
    InputError
        When it has fewer than `items` rows.
    """
    try:
        with np.load(io.BytesIO(read_file(path)), allow_pickle=False) as arrays:
            table = arrays["E"]
    except (ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} is no model.npz with the array E: {error}") from error
    if table.ndim != 2 or table.dtype != np.float32 or not 1 <= table.shape[1] <= MAX_DIM or not len(table):
        raise DataError(
            f"{path} has an E of shape {table.shape} and type {table.dtype}; expected float32 rows"
        )
    if not np.isfinite(table).all():
        raise DataError(f"{path} has values that are not finite")
    if items is not None and items > len(table):
        raise InputError(f"{path} has {len(table)} items; --items {items} asks for more")
    return np.ascontiguousarray(table[:items])


def read_users(path: Path, dim: int) -> tuple[Floats, Floats]:
    """Read the score functions of a ``users.npz``: W of shape (n_users, dim) and b, float32.

    Raises
    ------
    FileUnreadableError, DataError
    """
    try:
        with np.load(io.BytesIO(read_file(path)), allow_pickle=False) as arrays:
            W, b = arrays["W"], arrays["b"]
    except (ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} is no users.npz with the arrays W and b: {error}") from error
    fits = W.ndim == 2 and W.shape[1] == dim and len(W) and b.shape == (len(W),)
    if not fits or not (np.isfinite(W).all() and np.isfinite(b).all()):
        raise DataError(f"{path} has W of shape {W.shape}; expected finite score functions of {dim} values")
    return W.astype(np.float32), b.astype(np.float32)


def make_model(
    table: Floats, quantisation: Quantisation, users: tuple[Floats, Floats] | None = None
) -> Model:
    """Give the model to export.

    A new user starts from the mean of `users`; without any, from a seeded score function as a new fleet does.
    """
    dim = table.shape[1]
    if users is None:
        start = initial_score_function(dim, np.random.default_rng(0))
        w, b = start.w, start.b
    else:
        w, b = users[0].mean(axis=0), float(users[1].mean())
    made = quantise_table(table) if quantisation == "int8" else table
    floats = table if quantisation == "float32" else quantise_table(table).dequantised()
    return Model(table=made, w=w.astype(np.float32), b=float(np.float32(b)), mean=floats.mean(axis=0))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Exported:
    """What was written.

    Attributes
    ----------
    model_bytes : int
        Of the model in flash.
    files : int
    """

    directory: Path
    model: Model
    golden: Golden
    target: Target
    model_bytes: int
    files: int


def export(
    directory: Path,
    model: Model,
    target: Target,
    *,
    vectors: int,
    force: bool,
    interactions: int = INTERACTIONS,
) -> Exported:
    """Write the project.

    Raises
    ------
    InputError
        When the directory has something in it and `force` is not given; nothing is changed.
    NotWritableError, DiskFullError
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())) and not force:
        raise InputError(f"{directory} exists and was left as it was; give --force to write into it")
    golden = make_golden(model, vectors, interactions)
    content = model_bytes(model)
    boards = Path(__file__).parent / "boards"
    files: dict[str, bytes] = {"model.pfr": content}
    for name, text in (model_files(model) | golden_files(golden)).items():
        files[name] = text.encode()
    for name in ("app.c", "selftest.c", "board.h", "print.h", target.port):
        files[name] = (boards / name).read_bytes()
    if not target.is_host:
        for name in ("stack.h", "sections.ld"):
            files[name] = (boards / name).read_bytes()
    if target.fleet_port:
        for name in ("fleet.c", "fleet.h", target.fleet_port):
            files[name] = (boards / name).read_bytes()
    files["Makefile"] = makefile(target, golden).encode()
    core = core_directory()
    for path in sorted(core.rglob("*")):
        if path.is_file():
            files[f"pfedrec/{path.relative_to(core)}"] = path.read_bytes()
    for name, written in files.items():
        make_directory((directory / name).parent)
        write_atomically(directory / name, written)
    shutil.rmtree(directory / "build", ignore_errors=True)
    return Exported(
        directory=directory,
        model=model,
        golden=golden,
        target=target,
        model_bytes=len(content),
        files=len(files),
    )


def makefile(target: Target, golden: Golden) -> str:
    """Give the build file of a target."""
    settings = golden.hyperparameters
    app = (
        f"-DAPP_INTERACTIONS={golden.positives.size}U -DAPP_NEGATIVES={settings.negatives}U "
        f"-DAPP_BATCH_SIZE={settings.batch_size}U -DAPP_ITEM_LR={settings.item_lr!r}"
    )
    sources = " ".join(f"pfedrec/{name}" for name in SOURCES)
    if target.is_host:
        linking = "LDLIBS := -lm"
        script = ""
    else:
        memory = " ".join(
            f"-Wl,--defsym={name}=0x{value:x}"
            for name, value in (
                ("FLASH_ORIGIN", target.flash[0]),
                ("FLASH_LENGTH", target.flash[1]),
                ("RAM_ORIGIN", target.ram[0]),
                ("RAM_LENGTH", target.ram[1]),
            )
        )
        linking = (
            f"LDFLAGS := -nostartfiles -Tsections.ld -Wl,--gc-sections {memory}\nLDLIBS := -lm -lc -lgcc"
        )
        script = " sections.ld"
    fleet_rule, fleet_help = "", ""
    if target.fleet_port:
        fleet_help = "#   make fleet    builds the program that takes part in a fleet through a gateway\n"
        fleet_rule = f"""
fleet: build/fleet
build/fleet: build/fleet.o build/{target.fleet_port[:-2]}.o $(OBJECTS){script}
\t$(CC) $(FLAGS) $(LDFLAGS) $(filter %.o,$^) $(LDLIBS) -o $@
.PHONY: fleet
"""
    run = f"{' '.join(target.emulator)} build/selftest" if target.emulator else "build/selftest"
    return f"""# Written by firmware-tools export-c for {target.name}: {target.board}.
#   make          builds the application without and with learning, and the self-test
#   make run      runs the self-test
{fleet_help}CC := {target.compiler}
OPTIMISE := -O2
CFLAGS := -std=c99 $(OPTIMISE) -ffp-contract=off -ffunction-sections -fdata-sections \\
    -Wall -Wextra -Wconversion -Werror -Ipfedrec/include -I.
FLAGS := {" ".join(target.flags)}
APP := {app}
{linking}
CORE := {sources}
OBJECTS := $(CORE:%.c=build/%.o) build/model_data.o build/{target.port[:-2]}.o

all: build/app build/app-learning build/selftest

build/app: build/app.o $(OBJECTS){script}
build/app-learning: build/app-learning.o $(OBJECTS){script}
build/selftest: build/selftest.o build/golden.o $(OBJECTS){script}
build/app build/app-learning build/selftest:
\t$(CC) $(FLAGS) $(LDFLAGS) $(filter %.o,$^) $(LDLIBS) -o $@

build/app.o: app.c
\t@mkdir -p $(@D)
\t$(CC) $(FLAGS) $(CFLAGS) $(APP) -c $< -o $@
build/app-learning.o: app.c
\t@mkdir -p $(@D)
\t$(CC) $(FLAGS) $(CFLAGS) $(APP) -DTRAIN -c $< -o $@
build/%.o: %.c
\t@mkdir -p $(@D)
\t$(CC) $(FLAGS) $(CFLAGS) -c $< -o $@

run: build/selftest
\t{run}
{fleet_rule}
clean:
\trm -rf build
.PHONY: all run clean
"""
