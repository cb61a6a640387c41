"""What others have published, from ``published.toml``: figures to set ours beside, and their sources."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from edge.fleet.finishedrun import FinishedRun


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedFigure:
    """HR@10 and NDCG@10 as fractions, and the key of their source."""

    hr: float
    ndcg: float
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedDataset:
    """A data set of the paper.

    Attributes
    ----------
    size : tuple of int
        Users, items and interactions.
    remark : str
        Sentences on how the paper's data differs from what has its name here; may be empty.
    figures : mapping
        By the algorithm's name.
    sources : mapping
        A sentence for each source that the figures name.
    """

    name: str
    title: str
    protocol: str
    size: tuple[int, int, int]
    remark: str
    figures: Mapping[str, PublishedFigure]
    sources: Mapping[str, str]

    def is_of(self, run: FinishedRun) -> bool:
        """Tell whether a run is about this data: by its file's folder, or else by the data's size."""
        return run.dataset_name.split("/")[0].lower() == self.name or run.dataset_size == self.size


def load_published() -> dict[str, PublishedDataset]:
    """Give the data sets of the paper by name."""
    parsed = tomllib.loads((files("edge.fleet") / "published.toml").read_text("utf-8"))
    return {
        name: PublishedDataset(
            name=name,
            title=entry["title"],
            protocol=entry["protocol"],
            size=(entry["users"], entry["items"], entry["interactions"]),
            remark=entry.get("remark", ""),
            figures={
                algorithm: PublishedFigure(
                    hr=figure["hr"] / 100, ndcg=figure["ndcg"] / 100, source=figure["source"]
                )
                for algorithm, figure in entry["figures"].items()
            },
            sources=parsed["sources"],
        )
        for name, entry in parsed["datasets"].items()
    }
