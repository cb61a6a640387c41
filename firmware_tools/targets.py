"""The boards that models are exported for: compiler, emulator, memory; and which tools are installed."""

import shutil
from dataclasses import dataclass

_ARM = "arm-none-eabi-"
_RISCV = "riscv64-unknown-elf-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A kind of processor, on the board that QEMU knows.

    Attributes
    ----------
    name : str
        As ``--target`` names it.
    board : str
        The emulated board.
    prefix : str
        Of the compiler's programs.
    flags : tuple of str
        For compiling and linking.
    port : str
        The file of `firmware_tools/boards/` that starts the board.
    fleet_port : str
        The file that gives `fleet.c` its lines and its memory on that board; none: that program is not built.
    emulator : tuple of str
        Program and options that run an ELF file given after them; none for the host.
    flash, ram : tuple of int
        Address and bytes.
    packages : tuple of str
        Debian's, that bring compiler and emulator.
    """

    name: str
    board: str
    prefix: str = ""
    flags: tuple[str, ...] = ()
    port: str
    fleet_port: str = ""
    emulator: tuple[str, ...] = ()
    flash: tuple[int, int] = (0, 0)
    ram: tuple[int, int] = (0, 0)
    packages: tuple[str, ...] = ("gcc", "make")

    @property
    def is_host(self) -> bool:
        """Whether it is the machine that compiles."""
        return not self.prefix

    @property
    def compiler(self) -> str:
        """The C compiler's name."""
        return "cc" if self.is_host else f"{self.prefix}gcc"

    def missing_to_build(self) -> list[str]:
        """Name the programs that building needs and that are not installed."""
        needed = (self.compiler, "make") if self.is_host else (self.compiler, f"{self.prefix}size", "make")
        return [program for program in needed if shutil.which(program) is None]

    def missing_to_run(self) -> list[str]:
        """Name the programs that running needs and that are not installed."""
        return [program for program in self.emulator[:1] if shutil.which(program) is None]


def _arm(
    name: str, machine: str, board: str, flags: tuple[str, ...], mhz: int, **memory: tuple[int, int]
) -> Target:
    return Target(
        name=name,
        board=board,
        prefix=_ARM,
        flags=("-mthumb", *flags, f"-DBOARD_MHZ={mhz}U", "--specs=nano.specs"),
        port="arm.c",
        fleet_port="mps2.c" if machine.startswith("mps2") else "",
        emulator=(
            "qemu-system-arm",
            *("-M", machine, "-icount", "shift=0", "-nographic", "-monitor", "none", "-serial", "none"),
            *("-semihosting-config", "enable=on,target=native", "-kernel"),
        ),
        packages=("gcc-arm-none-eabi", "libnewlib-arm-none-eabi", "qemu-system-arm", "make"),
        **memory,
    )


_MPS2 = {"flash": (0x0000_0000, 4 << 20), "ram": (0x2000_0000, 4 << 20)}

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        _arm(
            "cortex-m0",
            "microbit",
            "BBC micro:bit",
            ("-mcpu=cortex-m0",),
            16,
            flash=(0x0000_0000, 256 << 10),
            ram=(0x2000_0000, 16 << 10),
        ),
        _arm("m3", "mps2-an385", "Arm MPS2 AN385", ("-mcpu=cortex-m3",), 25, **_MPS2),
        _arm(
            "m4f",
            "mps2-an386",
            "Arm MPS2 AN386",
            ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
            25,
            **_MPS2,
        ),
        _arm(
            "m7",
            "mps2-an500",
            "Arm MPS2 AN500",
            ("-mcpu=cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-d16"),
            25,
            **_MPS2,
        ),
        Target(
            name="rv32",
            board="QEMU virt, RV32IMAC",
            prefix=_RISCV,
            flags=("-march=rv32imac", "-mabi=ilp32", "-mcmodel=medany", "--specs=picolibc.specs"),
            port="riscv.c",
            emulator=(
                "qemu-system-riscv32",
                *("-M", "virt", "-bios", "none", "-icount", "shift=0", "-nographic"),
                *("-monitor", "none", "-serial", "none"),
                *("-semihosting-config", "enable=on,target=native", "-kernel"),
            ),
            flash=(0x8000_0000, 4 << 20),
            ram=(0x8040_0000, 4 << 20),
            packages=("gcc-riscv64-unknown-elf", "picolibc-riscv64-unknown-elf", "qemu-system-misc", "make"),
        ),
        Target(name="host", board="this machine", port="host.c"),
    )
}
