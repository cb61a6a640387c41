"""The tables of docs/device-states.md, drawn from the session's own.

To write them anew after a change of the session, and then to look at the difference:

    python -m tests.edge.states_page
"""

from pathlib import Path

from edge.session import _NEXT, Activity

PAGE = Path(__file__).parents[2] / "docs" / "device-states.md"
BEGIN, END = "<!-- drawn from edge/session.py -->\n", "<!-- end -->\n"


def drawn() -> str:
    """Give the table of transitions, and the same as a picture for those who render Mermaid."""
    events = list(dict.fromkeys(event for _, event in _NEXT))
    lines = ["| in | " + " | ".join(f"`{event}`" for event in events) + " |"]
    lines.append("|---" * (len(events) + 1) + "|")
    for activity in Activity:
        cells = [_NEXT[activity, event].value if (activity, event) in _NEXT else "-" for event in events]
        lines.append(f"| **{activity.value}** | " + " | ".join(cells) + " |")
    lines += ["", "```mermaid", "stateDiagram-v2", f"    [*] --> {Activity.IDLE.value}"]
    lines += [f"    {before.value} --> {after.value}: {event}" for (before, event), after in _NEXT.items()]
    lines += ["```", ""]
    return "\n".join(lines)


def with_drawing(text: str) -> str:
    """Give the page with its drawn part made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + drawn() + END + after


if __name__ == "__main__":
    PAGE.write_text(with_drawing(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
