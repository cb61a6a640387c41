"""The guard on promotion: it tells whether the newest version is worse than those before, beyond noise.

Theory of operation
-------------------
A sample of the devices that fetch a version compare it with the table that they had, each for its own user
(`edge.quality`), and report counts and sums (`broker.protocol.messages.Quality`). Both sides of a report come
from the same user, item and candidates, so that what differs between users cancels; what is left is the
difference d of the shares of candidates that the held-out item beats. It is cut to -0.5 .. 0.5, so that
nobody's report weighs more, whatever it says.

While a version is on trial no next one is made. After each report

* with `least` reports or more, the version is **bad** if ``mean(d) + z(n) · se(d) < -margin``: worse by more
  than the margin, even at the upper end of what noise allows. `se` is the standard error, with the sample
  deviation not taken below 0.15, as a few equal reports do not prove that there is no noise. As the question
  is asked after each report, the first ones must be the clearer: ``z(n) = z · sqrt(reports / n)`` up to
  `reports`, then z (O'Brien and Fleming, Biometrics 35, 1979). Of versions without any change 2 in 1,000
  would seem bad with a normal d of deviation 0.15, and 1 in 100 with 0.2;
* else, with `reports` of them and ``mean(d) >= -margin``, it is **good**; where it seems worse but may not
  be, more reports are waited for;
* and after `wait_s`, or as soon as two rounds' worth of updates wait (and twice as many as there should be
  reports, where rounds are smaller than that), it is **unjudged**: promoted for want of reports, as where
  most devices are new and have no table to compare it with. After `wait_s` reports go on to be looked at
  until the next version is made.

All that is kept of reports is their sums, and who was heard; the sums outlast a restart. Who was heard does
not: a device that reports the same version again after a restart counts twice.

A bad version is followed by a new one with the table of the last version that was not bad. What was learnt
from the bad one is not taken: `AggregatorCore` rejects it by name.

Why the share and neither HR@10, NDCG@10 nor the loss: of one item a user, the first two are zero for most,
and the loss moves with the score functions' scale. Measured on MovieLens 100K over 330 clean versions, the
mean share of 24 reports never fell by more than 0.021, and of 8 by more than 0.045; by a table with its sign
turned, or its rows exchanged, it fell by 0.33 or more.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from broker.protocol.messages import Quality
from trainer.errors import ParameterError
from trainer.params import Floats

Finding: TypeAlias = Literal["trial", "good", "bad", "unjudged", "restored"]
_LEAST_DEVIATION = 0.15
"""That of clean versions is 0.02 to 0.2, the more the younger the fleet; of poisoned ones about 0.4."""
_REACH = 0.5
"""The largest difference that a report counts for."""
_HELD_ROUNDS = 2
"""Updates that may wait for a finding, in rounds' worth, or in reports."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardSettings:
    """How versions are judged; see the top of this file.

    Attributes
    ----------
    reports : int
        That make a version good; 0: there is no guard.
    least : int
        Without so many no version is bad.
    margin : float
        How much worse a version may be: a mean difference of shares.
    z : float
        Standard errors that are left to noise, with all `reports`.
    wait_s : float
        Seconds after which a version is promoted without a finding.
    """

    reports: int = 24
    least: int = 8
    margin: float = 0.03
    z: float = 2.25
    wait_s: float = 120.0

    def __post_init__(self) -> None:
        if not 0 <= self.reports <= 10_000:
            raise ParameterError(f"guard_reports is {self.reports}; it must lie between 0 and 10000")
        if not 2 <= self.least <= 10_000:
            raise ParameterError(f"the guard's least reports are {self.least}; they must be 2 to 10000")
        if not (0.0 <= self.margin <= 1.0 and 0.0 <= self.z <= 100.0):
            raise ParameterError("the guard's margin must lie between 0 and 1, and its z between 0 and 100")
        if not 0.01 <= self.wait_s <= 604_800.0:
            raise ParameterError(f"guard_wait_s is {self.wait_s}; it must lie between 0.01 s and 7 days")

    def most_held(self, buffer: int) -> int:
        """Give how many updates end a trial when they wait, where `buffer` of them make a round."""
        return _HELD_ROUNDS * max(buffer, self.reports)

    def rate(self, buffer: int) -> float:
        """Give the share of devices to ask: those that make a round of `buffer` updates are to be enough."""
        return min(1.0, self.reports / buffer)


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionQuality:
    """What devices have reported about a version, added up, and what the guard has found.

    Attributes
    ----------
    reports : int
        Devices; each ranks one item of its own against `candidates` / `reports` others.
    hits, hits_before : int
        Items among the ten best, by this version and by those that the devices had before.
    beaten, beaten_before : int
        Candidates ranked below the item.
    ndcg, ndcg_before, loss, loss_before : float
        Sums of NDCG@10 and of the mean cross-entropy.
    differences, squares : float
        Sums of the differences of shares, cut as the top of this file says, and of their squares.
    """

    version: int
    finding: Finding
    reports: int = 0
    candidates: int = 0
    hits: int = 0
    hits_before: int = 0
    beaten: int = 0
    beaten_before: int = 0
    ndcg: float = 0.0
    ndcg_before: float = 0.0
    loss: float = 0.0
    loss_before: float = 0.0
    differences: float = 0.0
    squares: float = 0.0

    @property
    def difference(self) -> float:
        """The mean difference of shares; there must be a report."""
        return self.differences / self.reports

    @property
    def summary(self) -> str:
        """Say what was reported, for people."""
        if not self.reports:
            return "no device has reported it"
        beaten, before = (each / self.candidates for each in (self.beaten, self.beaten_before))
        hits, hits_before = (each / self.reports for each in (self.hits, self.hits_before))
        return (
            f"{self.reports} devices rank their newest item above {beaten:.3f} of others "
            f"(by the tables before: {before:.3f}), HR@10 {hits:.3f} ({hits_before:.3f})"
        )

    def plus(self, report: Quality) -> "VersionQuality":
        """Give the sums with one more report."""
        sums = {name: getattr(self, name) + getattr(report, name) for name in _SUMMED}
        difference = (report.beaten - report.beaten_before) / report.candidates
        difference = max(-_REACH, min(_REACH, difference))
        return replace(
            self,
            reports=self.reports + 1,
            differences=self.differences + difference,
            squares=self.squares + difference * difference,
            **sums,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Restorable:
    """A version that can be returned to.

    Attributes
    ----------
    table : ndarray, shape (n_items, dim), float32
    memory : mapping of str to ndarray
        What the strategy remembered when the version was made.
    """

    version: int
    table: Floats
    memory: Mapping[str, Floats] = field(default_factory=dict)


_SUMMED = (
    "candidates", "hits", "hits_before", "beaten", "beaten_before",
    "ndcg", "ndcg_before", "loss", "loss_before",
)  # fmt: skip


def is_worse(quality: VersionQuality, settings: GuardSettings) -> bool:
    """Tell whether the reports of a version show it to be worse beyond noise."""
    n = quality.reports
    if n < settings.least:
        return False
    mean = quality.difference
    variance = max(0.0, quality.squares - n * mean * mean) / (n - 1)
    error = max(math.sqrt(variance), _LEAST_DEVIATION) / math.sqrt(n)
    z = settings.z * math.sqrt(max(1.0, settings.reports / n))
    return mean + z * error < -settings.margin


@dataclass(slots=True)
class _Trial:
    quality: VersionQuality
    ends_at: float | None = None
    heard: set[str] = field(default_factory=set)


class Guard:
    """Judges one version after the other.

    Parameters
    ----------
    newest : Restorable
        Taken as good.
    """

    def __init__(self, settings: GuardSettings, newest: Restorable) -> None:
        self._settings = settings
        self.good = newest
        """The newest version that was not found bad: what a bad one is followed by."""
        self._newest = newest
        self._trial: _Trial | None = None

    @property
    def on_trial(self) -> bool:
        """Whether the newest version waits for its finding."""
        return self._trial is not None and self._trial.quality.finding == "trial"

    @property
    def is_bad(self) -> bool:
        """Whether the newest version was found bad."""
        return self._trial is not None and self._trial.quality.finding == "bad"

    @property
    def ends_at(self) -> float | None:
        """When the trial ends for want of reports."""
        return self._trial.ends_at if self._trial is not None and self.on_trial else None

    def published(
        self, newest: Restorable, *, finding: Finding = "trial", quality: VersionQuality | None = None
    ) -> None:
        """Go on with a version that was made; its trial's time begins with the next `tick`.

        Parameters
        ----------
        finding : str
            What is known before: ``trial``, ``unjudged`` (nobody waits for it), or ``restored``.
        quality : VersionQuality or None
            What was reported of it before a restart; its own finding does not matter.
        """
        self._newest = newest
        if finding == "restored":
            self.good = newest
        quality = quality or VersionQuality(version=newest.version, finding=finding)
        self._trial = _Trial(replace(quality, finding=finding))

    def report(self, device: str, report: Quality) -> VersionQuality | None:
        """Take a report; give the version's sums and finding with it, None if it does not count.

        Each device is heard once, about the newest version only.
        """
        trial = self._trial
        if trial is None or report.version != trial.quality.version or device in trial.heard:
            return None
        trial.heard.add(device)
        quality = trial.quality.plus(report)
        if quality.finding in ("trial", "unjudged"):
            if is_worse(quality, self._settings):
                quality = replace(quality, finding="bad")
            elif quality.reports >= self._settings.reports and quality.difference >= -self._settings.margin:
                quality = replace(quality, finding="good")
                self.good = self._newest
        trial.quality = quality
        return quality

    def tick(self, now: float) -> VersionQuality | None:
        """Time has passed; give the version's sums if that has ended its trial."""
        trial = self._trial
        if trial is None or trial.quality.finding != "trial":
            return None
        if trial.ends_at is None:
            trial.ends_at = now + self._settings.wait_s
        if now < trial.ends_at:
            return None
        trial.quality = replace(trial.quality, finding="unjudged")
        return trial.quality

    def overtaken(self) -> VersionQuality | None:
        """The next version is about to be made; give the sums if that ends a trial.

        What is not bad by now is what a bad version goes back to.
        """
        trial = self._trial
        if trial is None or trial.quality.finding not in ("trial", "unjudged"):
            return None
        self.good = self._newest
        if trial.quality.finding == "unjudged":
            return None
        trial.quality = replace(trial.quality, finding="unjudged")
        return trial.quality
