"""What items are called, and their genres: MovieLens' ``u.item``, or lines of an id, a tab and a name."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer.datasets import decoded_lines
from trainer.errors import DataFormatError

_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""The flags at the end of a line of ``u.item``, in the order of MovieLens' ``u.genre``."""
_U_ITEM_FIELDS = 5 + len(_GENRES)
OTHER = "other"


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemNames:
    """Names and genres by item key; an item that is not there goes by its key."""

    names: Mapping[str, str] = field(default_factory=dict)
    genres: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def name(self, key: str) -> str:
        """Give an item's name."""
        return self.names.get(key, f"item {key}")

    def classes(self, keys: Sequence[str], most: int) -> list[str]:
        """Give one genre to each item, of the `most` commonest; the rarest of its own, as that says more.

        Without any genres all items are of the class ``""``.
        """
        if not self.genres:
            return [""] * len(keys)
        counts = Counter(genre for key in keys for genre in self.genres.get(key, ()))
        common = dict(counts.most_common(most))
        return [
            min((g for g in self.genres.get(key, ()) if g in common), key=common.__getitem__, default=OTHER)
            for key in keys
        ]


def parse_item_names(content: bytes, source: str) -> ItemNames:
    """Read names, and genres where the file has them.

    Raises
    ------
    DataFormatError
        When the file is of neither form.
    """
    names: dict[str, str] = {}
    genres: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(decoded_lines(content, source), 1):
        if not line.strip():
            continue
        fields = line.split("|") if "|" in line and "\t" not in line else line.split("\t")
        if len(fields) < 2:
            raise DataFormatError(
                source, number, "no item; lines are MovieLens' u.item, or an id, a tab and a name"
            )
        # A page may hold no control characters.
        shown = "".join(each if each.isprintable() else " " for each in fields[1])
        names[fields[0].strip()] = shown.strip()
        if len(fields) == _U_ITEM_FIELDS:
            flags = zip(_GENRES, fields[5:], strict=True)
            genres[fields[0].strip()] = tuple(genre for genre, flag in flags if flag.strip() == "1")
    return ItemNames(names=names, genres=genres)
