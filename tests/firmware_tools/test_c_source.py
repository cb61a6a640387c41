"""What the C core promises about its source: warnings, dependencies, the layouts of four build systems."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from firmware_tools.ccore import C_FLAGS, SOURCES, WARNINGS, core_directory
from tests.firmware_tools.core import SANITIZED, needs_compiler

CORE = core_directory()
_ALLOWED_HEADERS = {"string.h", "math.h", "stddef.h", "stdint.h", "float.h"}
"""The library's two, and those of the language itself."""
_ALLOWED_SYMBOLS = {
    *("memcpy", "memset", "memcmp", "strlen"),
    *("tanhf", "expf", "sqrtf", "rintf", "fmaxf", "fminf"),
}

pytestmark = pytest.mark.skipif(SANITIZED, reason="nothing runs here that a sanitizer could see")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_core_compiles_without_a_warning(compiler: str) -> None:
    """With either compiler, conversions and all."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed: apt-get install {compiler}")
    flags = [*C_FLAGS, *WARNINGS, "-Wmissing-prototypes", "-Werror", "-O2", "-fsyntax-only"]
    sources = [str(CORE / name) for name in SOURCES]
    done = subprocess.run([compiler, *flags, *sources], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_compiler
def test_core_needs_nothing_but_string_and_math(tmp_path: Path) -> None:
    """No allocation, no input or output: by its includes, and by what its objects ask the linker for."""
    included = set()
    for path in (*CORE.rglob("*.c"), *CORE.rglob("*.h")):
        included |= set(re.findall(r"#include <(.*)>", path.read_text()))
    assert included <= _ALLOWED_HEADERS

    sources = [str(CORE / name) for name in SOURCES]
    subprocess.run(["cc", *C_FLAGS, "-Os", "-c", *sources], cwd=tmp_path, check=True)
    listed = subprocess.run(
        ["nm", "-u", *map(str, tmp_path.glob("*.o"))], check=True, capture_output=True, text=True
    ).stdout
    wanted = {name for name in re.findall(r" U (\w+)", listed) if not name.startswith("pfr_")}
    assert wanted <= _ALLOWED_SYMBOLS


def test_all_names_begin_with_pfr() -> None:
    """What a linker or a user's file could confuse with another library's."""
    for header in (CORE / "include").rglob("*.h"):
        text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)
        assert set(re.findall(r"\b(\w+)\(", text)) - {"defined"} <= {
            name for name in re.findall(r"\b\w+\b", text) if name.lower().startswith("pfr_")
        } | {"pfr_sink"}
        assert set(re.findall(r"#define (\w+)", text)) == {
            name for name in re.findall(r"#define (\w+)", text) if name.startswith(("PFR_", "PFEDREC_"))
        }


def test_build_systems_list_the_same_sources() -> None:
    """CMake and ESP-IDF, Zephyr, and what there is."""
    there = {f"src/{path.name}" for path in (CORE / "src").glob("*.c")}
    assert set(SOURCES) == there
    for listing in ("CMakeLists.txt", "zephyr/CMakeLists.txt"):
        assert set(re.findall(r"src/\w+\.c", (CORE / listing).read_text())) == there


@needs_compiler
@pytest.mark.parametrize("header", sorted(path.name for path in (CORE / "include" / "pfedrec").glob("*.h")))
def test_header_stands_alone_in_c_and_cpp(header: str) -> None:
    """Each can be the first and only one."""
    for compiler, language, standard in (("cc", "c", "c99"), ("c++", "c++", "c++11")):
        command = [
            compiler,
            "-x",
            language,
            f"-std={standard}",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fsyntax-only",
        ]
        if shutil.which(compiler) is None:
            continue
        program = f'#include "pfedrec/{header}"\n'
        done = subprocess.run(
            [*command, f"-I{CORE / 'include'}", "-"],
            input=program,
            text=True,
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


@needs_compiler
def test_arduino_finds_the_header_beside_the_sources(tmp_path: Path) -> None:
    """Arduino looks in src/ alone."""
    program = "#include <pfedrec.h>\nint main(void) { return pfr_status_text(PFR_OK) == 0; }\n"
    (tmp_path / "sketch.c").write_text(program)
    sources = [str(CORE / name) for name in SOURCES]
    subprocess.run(
        ["cc", *C_FLAGS, f"-I{CORE / 'src'}", "sketch.c", *sources, "-lm"], cwd=tmp_path, check=True
    )
    assert "includes=pfedrec.h" in (CORE / "library.properties").read_text()


@pytest.mark.skipif(
    shutil.which("cmake") is None, reason="CMake is not installed: apt-get install cmake make"
)
def test_cmake_builds_the_core(tmp_path: Path) -> None:
    """As a part of a larger project."""
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(app C)\n"
        f'add_subdirectory("{CORE}" pfedrec)\nadd_executable(app main.c)\n'
        "target_link_libraries(app pfedrec)\n"
    )
    (tmp_path / "main.c").write_text(
        '#include "pfedrec/pfedrec.h"\nint main(void) { return pfr_sigmoid(0.0F) != 0.5F; }\n'
    )
    for command in (("cmake", "-S", ".", "-B", "out"), ("cmake", "--build", "out")):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert subprocess.run([str(tmp_path / "out" / "app")], check=False).returncode == 0
