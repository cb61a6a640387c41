"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

import io

import pytest

from edge.fleet.progress import Progress


class Clock:
    """Shows the time that it is set to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Give the time, in seconds."""
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


# -- elsewhere than on a terminal ------------------------------------------------------------------


def test_plain_lines_come_now_and_then_and_at_the_end() -> None:
    """Not at once, not at every step."""
    stream, clock = io.StringIO(), Clock()
    progress = Progress(100, "rounds", stream=stream, clock=clock)
    for done in range(1, 101):
        clock.now += 0.25
        progress.update(done, f"HR@10 0.{done:03d}")
    progress.close()

    assert stream.getvalue().splitlines() == [
        "40/100 rounds, 15 s left, HR@10 0.040",
        "80/100 rounds, 5 s left, HR@10 0.080",
        "100/100 rounds, 0 s left, HR@10 0.100",
    ]


def test_plain_line_without_a_note_ends_with_the_time() -> None:
    """Before the first round there is nothing to note."""
    stream, clock = io.StringIO(), Clock()
    progress = Progress(4, "versions", stream=stream, clock=clock)
    clock.now += 12.0

    progress.update(1)

    assert stream.getvalue() == "1/4 versions, 36 s left\n"


def test_step_before_the_first_does_not_divide_by_zero() -> None:
    """A live run tells of version 0."""
    stream, clock = io.StringIO(), Clock()
    progress = Progress(4, "versions", stream=stream, clock=clock)
    clock.now += 10.0

    progress.update(0)

    assert stream.getvalue() == "0/4 versions, 40 s left\n"


def test_more_steps_than_there_are_show_as_all() -> None:
    """The updates under way at the end of a live run make another version or two."""
    stream = io.StringIO()
    progress = Progress(4, "versions", stream=stream, clock=Clock())

    progress.update(6)

    assert stream.getvalue() == "4/4 versions, 0 s left\n"


# -- on a terminal ---------------------------------------------------------------------------------


def test_bar_is_drawn_at_once_and_over_itself() -> None:
    """At most ten times a second, and always when all is done; its line ends once."""
    stream, clock = Terminal(), Clock()
    progress = Progress(60, "rounds", stream=stream, clock=clock)

    progress.update(1)
    clock.now += 0.05
    progress.update(2)
    clock.now += 0.95
    progress.update(20, "note")
    progress.update(60)
    progress.close()

    assert stream.getvalue().split("\r") == [
        "",
        "[" + "." * 30 + "] 1/60 rounds, 0 s left\033[K",
        "[" + "#" * 10 + "." * 20 + "] 20/60 rounds, 2 s left, note\033[K",
        "[" + "#" * 30 + "] 60/60 rounds, 0 s left\033[K\n",
    ]


def test_plain_progress_ends_with_its_last_line() -> None:
    """There is no bar to end."""
    stream = io.StringIO()
    Progress(3, "rounds", stream=stream, clock=Clock()).close()

    assert stream.getvalue() == ""


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """Results alone are on stdout."""
    Progress(1, "rounds").update(1)

    assert capsys.readouterr() == ("", "1/1 rounds, 0 s left\n")
