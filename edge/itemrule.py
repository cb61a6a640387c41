"""Which item of the catalogue a listen is: a rule that the device's configuration holds.

Catalogues differ from fleet to fleet: one has recordings by their MusicBrainz ids, another artists by
name. A rule is one or more templates, the most wanted first, for example
``{recording_mbid} | {artist_name} - {track_name}``: the first one whose fields a listen has makes the key.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter

from trainer.datasets import MAX_KEY_BYTES
from trainer.errors import ParameterError

ALWAYS_THERE = ("artist_name", "track_name")
FIELDS = (
    *ALWAYS_THERE,
    "release_name",
    "recording_mbid",
    "track_mbid",
    "release_mbid",
    "release_group_mbid",
    "artist_mbid",
    "isrc",
)
DEFAULT_RULE = "{recording_mbid} | {artist_name} - {track_name}"


@dataclass(frozen=True, slots=True)
class ItemRule:
    """A rule that was read and found to give a key to every listen.

    Attributes
    ----------
    templates : tuple of tuple of (str, str or None)
        Of each template its parts: literal text, and the field that follows it, if any.
    """

    templates: tuple[tuple[tuple[str, str | None], ...], ...]

    @classmethod
    def parse(cls, text: str) -> "ItemRule":
        """Read a rule.

        Raises
        ------
        ParameterError
            When a template is empty or not well formed, names an unknown field, or when the last one needs
            a field that a listen may lack: then some listens would be no item at all.
        """
        templates = tuple(_parsed(each.strip()) for each in text.split("|"))
        for _, name in templates[-1]:
            if name is not None and name not in ALWAYS_THERE:
                raise ParameterError(
                    f"listen_item {text[:80]!r} would leave listens without {name} without an item; "
                    "end it with a template of {artist_name} or {track_name} alone, "
                    f"for example {DEFAULT_RULE!r}"
                )
        return cls(templates)

    def item(self, listen: Mapping[str, str]) -> str:
        """Give the item key of a listen, from its fields' texts; empty and missing is the same.

        A key that would be longer than a catalogue's keys can be is cut.
        """
        wanted = next(
            template
            for template in self.templates
            if all(name is None or listen.get(name) for _, name in template)
        )
        key = "".join(literal + (listen[name] if name else "") for literal, name in wanted)
        return key.encode()[:MAX_KEY_BYTES].decode(errors="ignore").strip()


def plain(text: str) -> str:
    """Give a name as item keys have it: composed (NFC), printable, single spaces, none around it."""
    composed = unicodedata.normalize("NFC", text)
    return " ".join("".join(c if c.isprintable() else " " for c in composed).split())


def _parsed(template: str) -> tuple[tuple[str, str | None], ...]:
    try:
        parts = [
            (literal, name)
            for literal, name, form, conversion in Formatter().parse(template)
            if not _has_more(form, conversion)
        ]
    except ValueError as error:
        raise ParameterError(
            f"listen_item: the template {template[:80]!r} is not well formed: {error}"
        ) from None
    unknown = [name for _, name in parts if name is not None and name not in FIELDS]
    if unknown:
        raise ParameterError(
            f"listen_item: there is no field {unknown[0][:40]!r}; there are {', '.join(FIELDS)}"
        )
    if not any(name for _, name in parts):
        raise ParameterError(
            f"listen_item: the template {template[:80]!r} names no field, so all listens would be one item"
        )
    if not template.isprintable():
        raise ParameterError(f"listen_item: the template {template[:80]!r} holds control characters")
    return tuple(parts)


def _has_more(form: str | None, conversion: str | None) -> bool:
    if form or conversion:
        raise ValueError("a field is a name in braces, nothing more")
    return False
