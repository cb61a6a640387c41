"""docs/device-states.md says what the session does."""

from edge.session import _NEXT, Activity
from tests.edge.states_page import PAGE, drawn, with_drawing


def test_page_is_drawn_from_the_session() -> None:
    """Otherwise: ``python -m tests.edge.states_page``, and look at what has changed."""
    text = PAGE.read_text(encoding="utf-8")

    assert with_drawing(text) == text


def test_page_explains_every_activity_and_event() -> None:
    """Each has a line of its own."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()

    for activity in Activity:
        assert any(line.startswith(f"| {activity.value} | ") for line in lines)
    for event in {event for _, event in _NEXT}:
        assert any(line.startswith(f"| `{event}` | ") for line in lines)


def test_drawing_has_every_transition() -> None:
    """As often in the picture as in the table."""
    assert drawn().count(" --> ") == len(_NEXT) + 1
    for (before, event), after in _NEXT.items():
        assert f"{before.value} --> {after.value}: {event}" in drawn()
