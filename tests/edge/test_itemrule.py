"""Which item a listen is, for any listen and any rule that is allowed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.itemrule import ALWAYS_THERE, DEFAULT_RULE, FIELDS, ItemRule, plain
from trainer.datasets import checked_key
from trainer.errors import ParameterError

LISTEN = {
    "artist_name": "Björk",
    "track_name": "Jóga",
    "recording_mbid": "98255a8c-017a-4bc7-8dd6-1fa36124572b",
    "artist_mbid": "87c5dedd-371d-4a53-9f7f-80522fb7f3cb",
}


@pytest.mark.parametrize(
    ("rule", "item"),
    [
        (DEFAULT_RULE, "98255a8c-017a-4bc7-8dd6-1fa36124572b"),
        ("{artist_name}", "Björk"),
        ("{artist_name} - {track_name}", "Björk - Jóga"),
        ("{release_mbid}|{artist_mbid}|{artist_name}", "87c5dedd-371d-4a53-9f7f-80522fb7f3cb"),
        ("mbid:{recording_mbid} | name:{track_name}", "mbid:98255a8c-017a-4bc7-8dd6-1fa36124572b"),
        ("{release_name} | {{{track_name}}}", "{Jóga}"),
    ],
)
def test_rule_takes_the_first_template_that_fits(rule: str, item: str) -> None:
    """Of those whose fields the listen has."""
    assert ItemRule.parse(rule).item(LISTEN) == item


def test_rule_takes_an_empty_field_as_missing() -> None:
    """Players send them."""
    assert ItemRule.parse(DEFAULT_RULE).item(LISTEN | {"recording_mbid": ""}) == "Björk - Jóga"


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("", "names no field"),
        ("songs", "names no field, so all listens would be one item"),
        ("{artist_name} |", "names no field"),
        ("{recording_mbid}", "would leave listens without recording_mbid without an item"),
        ("{artist_name} | {isrc}", "without isrc"),
        ("{artist}", "no field 'artist'; there are artist_name, track_name"),
        ("{}", "no field ''"),
        ("{0}", "no field '0'"),
        ("{artist_name.upper}", "no field 'artist_name.upper'"),
        ("{artist_name!r}", "a name in braces, nothing more"),
        ("{artist_name:>80}", "a name in braces, nothing more"),
        ("{artist_name", "not well formed"),
        ("artist_name}", "not well formed"),
        ("{artist_name}\n", "control characters"),
        ("a\x07{artist_name}", "control characters"),
    ],
)
def test_rule_that_cannot_serve_is_refused(rule: str, sentence: str) -> None:
    """With what is wrong."""
    if rule.endswith("\n"):
        rule += "x{track_name}"
    with pytest.raises(ParameterError, match=sentence):
        ItemRule.parse(rule)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a\u00a0b\tc\n", "a b c"),
        ("Bjo\u0308rk", "Björk"),
        ("\u200b", ""),
        ("\ud800x", "x"),
        ("a\u202eb", "a b"),
    ],
)
def test_plain_name_is_composed_printable_and_single_spaced(text: str, expected: str) -> None:
    """However it was typed."""
    assert plain(text) == expected


@given(
    names=st.fixed_dictionaries(
        dict.fromkeys(ALWAYS_THERE, st.text(min_size=1).filter(plain)),
        optional=dict.fromkeys(set(FIELDS) - set(ALWAYS_THERE), st.text()),
    ),
    rule=st.sampled_from(
        [DEFAULT_RULE, "{isrc} | {release_name}: {track_name} | {track_name}", "{track_name}"]
    ),
)
def test_rule_gives_every_listen_a_key_that_a_catalogue_can_have(names: dict[str, str], rule: str) -> None:
    """Long names are cut."""
    listen = {name: plain(text) for name, text in names.items()}
    item = ItemRule.parse(rule).item(listen)
    assert checked_key(item, "item", "", None) == item
