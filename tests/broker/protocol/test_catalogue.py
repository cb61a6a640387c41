"""The catalogue as bytes: what is written is read, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import SchemaError
from broker.protocol.catalogue import Catalogue, read_catalogue

_KEYS = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    """Give any catalogue."""
    names = draw(st.lists(_KEYS, min_size=1, max_size=12, unique=True))
    n_rows = draw(st.integers(1, len(names)))
    retired = draw(st.frozensets(st.integers(0, n_rows - 1)))
    former = {name: draw(st.integers(0, n_rows - 1)) for name in names[n_rows:]}
    return Catalogue(tuple(names[:n_rows]), retired, former)


@given(catalogues())
def test_catalogue_survives_as_bytes(catalogue: Catalogue) -> None:
    """With its retired rows and former keys."""
    assert read_catalogue(catalogue.to_bytes(), len(catalogue.keys)) == catalogue


def test_catalogue_without_marks_is_its_keys() -> None:
    """As every release has written it; marks stand behind the key."""
    assert Catalogue(("a", "b")).to_bytes() == b"a\nb\n"
    marked = Catalogue(("a", "b"), frozenset({1}), {"z": 1, "y": 1, "x": 0})
    assert marked.to_bytes() == b"a\t=x\nb\t-\t=y\t=z\n"
    assert marked.retired_rows.tolist() == [1]


@pytest.mark.parametrize(
    "content",
    [
        b"a\nb", b"a\n", b"a\na\n", b"a\nb\t\n", b"a\nb\t+\n", b"a\nb\t-\t-\n", b"a\nb\t=\n", b"a\nb\t=a\n",
        b"a\t=c\nb\t=c\n", b"a\nb\t=c\t-\n", b"\t-\nb\n", b"a\nb\t=\x07\n", b"a\n\xff\n",
        b"a\nb\t=" + b"x" * 5000 + b"\n",
    ],
)  # fmt: skip
def test_other_bytes_are_refused(content: bytes) -> None:
    """What is no line, no key or no mark, or stands there twice."""
    with pytest.raises(SchemaError):
        read_catalogue(content, 2)
