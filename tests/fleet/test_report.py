"""The page about runs: what it shows, that it is whole by itself, and the numbers beside its pictures."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from edge.fleet.finishedrun import read_runs
from edge.fleet.report.itemnames import OTHER, parse_item_names
from edge.fleet.report.ownviews import load_own_views
from edge.fleet.report.projection import principal_components, tsne
from edge.fleet.report.separation import HELD_OUT, auc, measured, separations, silhouette
from tests.fleet.builders import Call, write_ratings
from tests.fleet.folders import write_model, write_run
from trainer.errors import DataFormatError

_U_ITEM = (
    "101|Toy & Story (1995)|01-Jan-1995||http://x|"
    + "|".join("1" if g in (3, 5) else "0" for g in range(19)),
    "102|Caf\xe9 <b>|01-Jan-1995||http://x|" + "|".join("1" if g == 5 else "0" for g in range(19)),
    "103|None|||" + "|" + "|".join(["0"] * 19),
)
_MOST_BYTES = 5_000_000


@pytest.fixture
def u_item(tmp_path: Path) -> Path:
    """Give a small file of MovieLens' form, Latin-1."""
    path = tmp_path / "u.item"
    path.write_bytes("\n".join(_U_ITEM).encode("latin-1"))
    return path


def _page(call: Call, out: Path, *arguments: object) -> str:
    outcome = call("report", *arguments, "--out", out)
    assert outcome.code == 0, outcome.err
    assert f"report  {out}" in outcome.out
    return out.read_text()


def _parsed(page: str) -> ET.Element:
    return ET.fromstring(page.replace("<!DOCTYPE html>", ""))  # noqa: S314 - our own page


def test_page_is_well_formed_and_needs_no_network(tmp_path: Path, call: Call, u_item: Path) -> None:
    """No script, no font, no style and no picture comes from elsewhere; all identifiers are unique."""
    run = write_run(tmp_path / "a")
    write_model(run)

    page = _page(call, tmp_path / "out.html", run, "--items", u_item)

    root = _parsed(page)
    assert len(page.encode()) < _MOST_BYTES
    assert not re.search(r"<(script|link|img|iframe|object|embed)\b|@import|@font-face", page)
    references = [
        value
        for element in root.iter()
        for name, value in element.attrib.items()
        if name.rpartition("}")[2] in ("href", "src") or "url(" in value
    ]
    identifiers = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert references
    assert all(value.startswith("#") or re.fullmatch(r"url\(#\w+\)", value) for value in references)
    assert len(identifiers) == len(set(identifiers))
    assert {re.sub(r"^url\(|[#)]", "", value) for value in references} <= set(identifiers)
    assert set(re.findall(r"https?://[^\"' <]*", page)) <= {"http://www.w3.org/2000/svg"}


def test_page_is_the_same_for_the_same_folders(tmp_path: Path, call: Call) -> None:
    """No date, no random identifier."""
    run = write_run(tmp_path / "a")
    write_model(run, shift=True)

    assert _page(call, tmp_path / "1.html", run) == _page(call, tmp_path / "2.html", run)


def test_pictures_have_alternative_texts_and_points_have_names(
    tmp_path: Path, call: Call, u_item: Path
) -> None:
    """Who does not see the picture reads what it shows; a point's name shows under the pointer."""
    run = write_run(tmp_path / "a")
    write_model(run)

    page = _page(call, tmp_path / "out.html", run, "--items", u_item)

    svgs = [element for element in _parsed(page).iter() if element.tag.endswith("}svg")]
    titles = [element.text for element in _parsed(page).iter() if element.tag.endswith("}title")]
    assert len(svgs) == 6
    assert all(svg.get("role") == "img" and len(svg.get("aria-label", "")) > 20 for svg in svgs)
    assert {"Toy & Story (1995)", "Café <b>", "item 104"} <= set(titles)
    # 12 items on 2 maps of the shared table, and on 4 of each of 3 users with 2 held-out items marked.
    assert len(titles) == 2 * 12 + 3 * 4 * (12 + 2)


def test_page_without_users_says_how_to_get_them(tmp_path: Path, call: Call) -> None:
    """The map of the shared table is there, and one sentence in place of the own views."""
    run = write_run(tmp_path / "a")
    write_model(run, users=False)

    page = _page(call, tmp_path / "out.html", run)

    assert "--save-users" in page
    assert "User a" not in page
    assert len(re.findall("<svg", page)) == 3


def test_page_shows_bars_where_there_is_an_ablation(tmp_path: Path, call: Call) -> None:
    """Variants of PFedRec have bars; their figures are in the alternative text."""
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", algorithm="pfedrec-neither", own=(90, 90, 90, 0))

    page = _page(call, tmp_path / "out.html", tmp_path / "runs")

    assert "Ablation on tiny/ratings.csv" in page
    assert "PFedRec, neither HR@10 25.0" in page


@pytest.mark.parametrize("hold_out", ["last", "random"])
def test_page_tells_held_out_items_that_are_drawn(tmp_path: Path, call: Call, hold_out: str) -> None:
    """They are no later than what users trained with."""
    run = write_run(tmp_path / "a", config={"hold_out": hold_out})

    page = _page(call, tmp_path / "out.html", run)

    assert ("Where data has no times" in page) == (hold_out == "random")


def test_page_of_a_method_without_rounds_is_a_table(tmp_path: Path, call: Call) -> None:
    """A baseline has figures, but neither curves nor maps."""
    run = write_run(tmp_path / "a", algorithm="popularity", mode="central")

    page = _page(call, tmp_path / "out.html", run)

    assert "popularity" in page
    assert "<svg" not in page


def test_page_marks_what_users_trained_with(tmp_path: Path, call: Call) -> None:
    """With --data training items are ringed and measured, by a run of the program itself."""
    ratings = write_ratings(tmp_path / "ratings.csv")
    run = tmp_path / "run"
    made = call(
        "simulate", "--data", ratings, "--protocol", "clean", "--rounds", 2, "--dim", 4, "--save-users",
        "--out", run,
    )  # fmt: skip
    assert made.code == 0, made.err

    page = _page(call, tmp_path / "out.html", run, "--data", ratings)

    assert "trained with</td>" in page
    assert re.search(r"Rings: (\d+) of the \1 items that the user trained with", page)


def test_report_without_a_run_is_refused(tmp_path: Path, call: Call) -> None:
    """Nothing is written."""
    (tmp_path / "empty").mkdir()

    outcome = call("report", tmp_path / "empty", "--out", tmp_path / "out.html")

    assert outcome.code == 14
    assert "none of the folders holds a finished run" in outcome.err
    assert not (tmp_path / "out.html").exists()


def test_report_without_matplotlib_names_the_extra(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing extra is one sentence with the command that installs it."""
    run = write_run(tmp_path / "a")
    for name in list(sys.modules):
        if name.startswith("edge.fleet.report.") or name.split(".")[0] == "matplotlib":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Missing("matplotlib"), *sys.meta_path])

    outcome = call("report", run, "--out", tmp_path / "out.html")

    assert outcome.code == 40
    assert outcome.err == (
        "edge-fleet: this needs the module matplotlib, which is not installed; "
        f"install it with: {sys.executable} -m pip install 'pfedrec-edge[report]'\n"
    )


def test_page_without_scikit_learn_says_so(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maps are then those of the principal components."""
    run = write_run(tmp_path / "a")
    write_model(run)
    for name in list(sys.modules):
        if name.split(".")[0] == "sklearn":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Missing("sklearn"), *sys.meta_path])

    page = _page(call, tmp_path / "out.html", run)

    assert "t-SNE is left out, as scikit-learn is not installed" in page
    assert "PCA" in page


class _Missing:
    """Makes a module look as if it were not installed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Refuse the module, and leave others to the other finders."""
        if name.split(".", maxsplit=1)[0] == self._name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_users_that_do_not_fit_the_model_are_named(tmp_path: Path, call: Call) -> None:
    """Files of different runs in one folder."""
    run = write_run(tmp_path / "a")
    write_model(run, shift=True)
    np.savez(run / "model.npz", E=np.zeros((3, 2), dtype=np.float32), item_keys=np.array(["1", "2", "3"]))

    outcome = call("report", run, "--out", tmp_path / "out.html")

    assert outcome.code == 26
    assert "users.npz does not fit model.npz" in outcome.err


def test_own_view_has_own_rows_and_shift(tmp_path: Path) -> None:
    """A shift of 5 with w = (2, 0) moves an item by 5 / 4 · (2, 0), and its score by 5."""
    run = write_run(tmp_path / "a")
    write_model(run, shift=True)
    views = load_own_views(read_runs([run])[0][0])

    table = views.own_table(0)
    own, shared = views.scores(0)

    assert table[1].tolist() == [102.5, 0.0]
    assert table[2].tolist() == [2.0, 2.0]
    assert table[3].tolist() == [5.5, 0.0]
    assert shared.tolist() == [2.0 * item for item in range(12)]
    np.testing.assert_allclose(own, table @ views.users.W[0])


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        ([3.0], [1.0, 2.0], 1.0),
        ([0.0], [1.0, 2.0], 0.0),
        ([1.0, 3.0], [1.0, 2.0], 0.625),
        ([1.0], [1.0], 0.5),
    ],
)
def test_auc_counts_pairs(positives: list[float], negatives: list[float], expected: float) -> None:
    """Ties count half."""
    assert auc(np.array(positives), np.array(negatives)) == expected


def test_silhouette_by_hand() -> None:
    """Positives at 0 and 1, a negative at 3: (3 - 1) / 3 and (2 - 1) / 2, on average 7/12."""
    positives, negatives = np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[3.0, 0.0]])

    assert silhouette(positives, negatives) == pytest.approx(7 / 12)
    assert silhouette(np.zeros((2, 2)), np.zeros((3, 2))) == 0.0


def test_separation_measures_held_out_items(tmp_path: Path) -> None:
    """User 0 holds out items 0 and 1 against 4, 5 and 6; its own row lifts item 1 above all of them."""
    run = write_run(tmp_path / "a")
    write_model(run)
    (read,) = read_runs([run])[0]

    values = measured(read, load_own_views(read), None)
    first = separations([values], same_users=True)[0]

    assert values[HELD_OUT][0, :, 0].tolist() == [0.5, 0.0]
    assert (first.positives, first.measure) == (HELD_OUT, "AUC")
    assert first.gain.mean == pytest.approx(0.5 / 4)


def test_principal_components_find_the_line() -> None:
    """Points on a line lie on the first axis, whichever way it was given."""
    points = np.outer(np.arange(5.0), [0.6, 0.8]).astype(np.float32)

    components = principal_components(points)

    np.testing.assert_allclose(components.of(points)[:, 0], np.arange(-2.0, 3.0), atol=1e-6)
    np.testing.assert_allclose(components.of(points)[:, 1], 0.0, atol=1e-6)
    assert components.share == pytest.approx(1.0)


@pytest.mark.parametrize("dim", [1, 4])
def test_tsne_repeats_itself(dim: int) -> None:
    """The same rows give the same plane."""
    rows = np.random.default_rng(1).normal(size=(30, dim)).astype(np.float32)

    plane = tsne(rows)

    assert plane.shape == (30, 2)
    np.testing.assert_array_equal(plane, tsne(rows))


def test_item_names_of_movielens(u_item: Path) -> None:
    """Names are Latin-1; an item is of the rarest of its common genres."""
    names = parse_item_names(u_item.read_bytes(), "u.item")

    assert names.name("102") == "Café <b>"
    assert names.name("7") == "item 7"
    assert names.genres["101"] == ("Animation", "Comedy")
    assert names.classes(["101", "102", "103", "7"], 8) == ["Animation", "Comedy", OTHER, OTHER]
    assert names.classes(["101", "102", "103"], 1) == ["Comedy", "Comedy", OTHER]


def test_item_names_of_two_columns() -> None:
    """An id, a tab and a name; there are no genres then."""
    names = parse_item_names(b"id\tname\n1\tMALICE\x1fMIZER\n", "artists.tsv")

    assert names.name("1") == "MALICE MIZER"
    assert names.classes(["1"], 8) == [""]


def test_item_names_of_another_form_are_refused() -> None:
    """The sentence names the line."""
    with pytest.raises(DataFormatError, match="no item; lines are"):
        parse_item_names(b"1\tone\nno separator\n", "names.txt")
