"""What a fleet of virtual devices learns from: users with their interactions, split and with candidates."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from broker.storage import read_file
from trainer.datasets import parse_ratings
from trainer.errors import DataTooSmallError, ParameterError
from trainer.params import Rows
from trainer.sampling import NegativeSampler, Protocol
from trainer.splits import Interactions, Split, leave_one_out, sampled_candidates
from trainer.synthetic import SyntheticSettings, generate, generate_large

SYNTHETIC = "synthetic"
_HOLD_OUT_STREAM = 7
_LARGE_FLEET = 100
_MEAN_INTERACTIONS = 30
_SIZED = re.compile(r"synthetic:([0-9]{1,7})x([0-9]{1,7})(?:x([0-9]{1,7}))?")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scenario:
    """Users, their split, and what evaluation ranks.

    Attributes
    ----------
    name : str
        Of the data set.
    sha256 : str or None
        Of the data file; None for generated data.
    val, test : ndarray, shape (n_users, 100), int64
        Candidates, the positive first.
    """

    name: str
    sha256: str | None
    data: Interactions
    split: Split
    protocol: Protocol
    val: Rows
    test: Rows

    @property
    def n_users(self) -> int:
        """How many users there are: one for each virtual device."""
        return self.data.n_users

    def sampler(self, user: int) -> NegativeSampler:
        """Give what draws a user's training negatives under the scenario's protocol."""
        excluded = self.split.known(user) if self.protocol == "published" else self.split.train[user]
        return NegativeSampler.excluding(self.split.n_items, excluded)


def load_scenario(source: str, protocol: Protocol, seed: int, n_users: int | None = None) -> Scenario:
    """Read or generate the data, split it, and draw the candidates.

    Parameters
    ----------
    source : str
        A file of ratings, ``synthetic``, or ``synthetic:USERSxITEMS[xMEAN]``.
    n_users : int, optional
        Take only the first so many users; generated data then has just so many.

    Raises
    ------
    FileUnreadableError, DataFormatError, DataTooSmallError
        About the file.
    ParameterError
        When there are not so many users, or generated data cannot have the sizes asked for.
    """
    # One stream for each purpose, so that asking for more of one does not change another.
    data_rng, candidates_rng = (np.random.default_rng([seed, stream]) for stream in (1, 2))
    digest: str | None = None
    if source == SYNTHETIC:
        name = SYNTHETIC
        data = generate(_synthetic_settings(n_users), data_rng)
    elif source.startswith(SYNTHETIC + ":"):
        name = source
        data = _first_users(generate_large(_sized(source), data_rng), n_users)
    else:
        path = Path(source)
        content = read_file(path)
        digest = hashlib.sha256(content).hexdigest()
        name = f"{path.resolve().parent.name}/{path.name}"
        data = _first_users(parse_ratings(content, source), n_users)
    if data.n_items < 2:
        raise DataTooSmallError(f"{source} has {data.n_items} item; a recommender needs a choice")
    split = split_of(data, seed)
    val, test = sampled_candidates(split, candidates_rng)
    return Scenario(name=name, sha256=digest, data=data, split=split, protocol=protocol, val=val, test=test)


def split_of(data: Interactions, seed: int) -> Split:
    """Split the data as a run with this seed does; docs/data.md tells how to do it elsewhere."""
    return leave_one_out(data, np.random.default_rng([seed, _HOLD_OUT_STREAM]))


def _synthetic_settings(n_users: int | None) -> SyntheticSettings:
    if n_users is None:
        return SyntheticSettings()
    if n_users >= _LARGE_FLEET:
        return SyntheticSettings(n_users=n_users)
    # Fewer devices need a plainer structure, and more from each, to learn it.
    return SyntheticSettings(
        n_users=n_users, n_items=300, n_groups=6, favourite_groups=1, mean_interactions=40
    )


def _sized(source: str) -> SyntheticSettings:
    sizes = _SIZED.fullmatch(source)
    if sizes is None:
        raise ParameterError(
            f"{source!r} is no size of generated data; give synthetic:USERSxITEMS or "
            "synthetic:USERSxITEMSxMEAN, such as synthetic:12000x8000x50"
        )
    return SyntheticSettings(
        n_users=int(sizes[1]), n_items=int(sizes[2]), mean_interactions=int(sizes[3] or _MEAN_INTERACTIONS)
    )


def _first_users(data: Interactions, n_users: int | None) -> Interactions:
    if n_users is None or n_users == data.n_users:
        return data
    if not 1 <= n_users <= data.n_users:
        raise ParameterError(f"{n_users} devices were asked for; the data has {data.n_users} users")
    return Interactions(
        user_keys=data.user_keys[:n_users],
        item_keys=data.item_keys,
        indptr=data.indptr[: n_users + 1],
        items=data.items[: data.indptr[n_users]],
        timed=data.timed,
    )
