"""The decoders' fuzzers, briefly; ``scripts/prove fuzz`` runs them for long."""

from pathlib import Path

import pytest

from tests.firmware_tools.core import needs_compiler
from tests.integration.fuzz import TARGETS, build, fuzz, has_libfuzzer


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the fuzzer with a mutator of our own."""
    return build(tmp_path_factory.mktemp("fuzz"), libfuzzer=False)


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
def test_decoder_survives_a_seeded_fuzz(target: str, fuzzer: Path) -> None:
    """Damaged messages under sanitizers, the same ones every time."""
    well, said = fuzz(fuzzer, target, 20_000, 7, libfuzzer=False)
    assert well, said


@pytest.mark.skipif(
    not has_libfuzzer(), reason="libFuzzer is not installed: apt-get install clang libclang-rt-14-dev"
)
def test_libfuzzer_runs_the_same_harness(tmp_path: Path) -> None:
    """A few inputs, to see that the long proof would run."""
    well, said = fuzz(build(tmp_path, libfuzzer=True), "head", 3_000, 7, libfuzzer=True)
    assert well, said
