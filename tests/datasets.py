"""Where tests find data sets that the project may not carry with it."""

import os
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[1]


def ml_100k() -> Path:
    """Give the path of MovieLens 100K's ``ratings.dat``, or skip the test that asks.

    It is looked for in ``$PFEDREC_DATA/ml-100k``, then in ``../shared/data/ml-100k`` beside the checkout.
    """
    roots = [_REPOSITORY.parent / "shared" / "data"]
    if named := os.environ.get("PFEDREC_DATA"):
        roots.insert(0, Path(named))
    for root in roots:
        path = root / "ml-100k" / "ratings.dat"
        if path.is_file():
            return path
    pytest.skip(
        "MovieLens 100K may not be redistributed; to run this test, put its ratings "
        "(lines of user,item,rating,timestamp) in $PFEDREC_DATA/ml-100k/ratings.dat"
    )
