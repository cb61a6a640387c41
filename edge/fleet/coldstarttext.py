"""The figures of a cold start as text: two tables, the first once for each ranking."""

from collections.abc import Mapping
from typing import Any

from edge.fleet.coldstartcommand import RANKINGS, VIEWS
from edge.fleet.texttable import aligned


def text_of(content: Mapping[str, Any]) -> list[str]:
    """Give the two tables, the first once for each ranking."""
    fleet, dataset = content["fleet"], content["dataset"]
    n_new = dataset["users"] - fleet["users"]
    trained = f"a fleet of {fleet['users']} users, round {fleet['best_round']} of {fleet['rounds']}"
    lines = [f"{dataset['name']}: {trained} by validation; {n_new} new users"]
    heads = ["interactions", "users", "popularity", "shared table", "own view"]
    differences = ("own - popularity", "own - shared")
    for ranking in RANKINGS:
        lines += [
            "",
            f"New users, {ranking} ranking: HR@10 / NDCG@10; differences of NDCG@10 with 95 % intervals",
        ]
        rows = [[*heads, *differences]]
        for line in content["new_users"]:
            of = line.get(ranking)
            shown = ["-"] * (len(VIEWS) + len(differences))
            if of is not None:
                shown = [_pair(of[view]) for view in VIEWS] + [_interval(of[name]) for name in differences]
            rows.append([str(line["interactions"]), str(line["users"]), *shown])
        lines += aligned(rows)
    lines += [
        "",
        "New items, sampled ranking of trained users' test items, by the fleet's interactions with the item",
    ]
    rows = [["interactions", "users", "shared table", "own view"]]
    for band in content["new_items"]:
        shown = [_pair(band[view]) if view in band else "-" for view in ("shared", "own")]
        rows.append([_band(band["low"], band["high"]), str(band["users"]), *shown])
    return lines + aligned(rows)


def _band(low: int, high: int | None) -> str:
    if high is None:
        return "more"
    return str(low) if low == high else f"{low}-{high}"


def _pair(of_view: Mapping[str, float]) -> str:
    return f"{of_view['hr@10']:.4f} / {of_view['ndcg@10']:.4f}"


def _interval(difference: Mapping[str, float | None]) -> str:
    """Show the mean, and the interval's ends where there is one."""
    middle, *ends = (f"{value:+.4f}" for value in difference.values() if value is not None)
    return f"{middle} ({' to '.join(ends)})" if ends else middle
