"""What a sweep comes to: each combination's figures over its seeds, the best by validation first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from broker.exit_codes import ExitCode
from edge.fleet.sweepgrid import FIGURES, Combination, SweepOptions, SweepRun, as_text
from edge.fleet.texttable import aligned

_HEADS = {"validation": "validation", "test": "test", "test_full": "test, full ranking"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A run that came to nothing."""

    folder: str
    sentence: str
    code: ExitCode


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What a sweep comes to.

    Attributes
    ----------
    content : dict
        What ``sweep.json`` has: the options, and each combination's result, the best first.
    """

    content: dict[str, Any]
    failures: Sequence[Failure]


def results_of(
    options: SweepOptions,
    data_sha256: str | None,
    runs: Sequence[tuple[Combination, Sequence[SweepRun]]],
    failures: Sequence[Failure],
    *,
    show_test: bool,
) -> dict[str, Any]:
    """Give the content of ``sweep.json``: of runs that are finished, those that failed and those to come."""
    sentences = {failure.folder: failure.sentence for failure in failures}
    chosen = {combination.preset.select_by for combination, _ in runs}
    # NDCG where combinations choose their rounds by different figures.
    select_by = f"{chosen.pop() if len(chosen) == 1 else 'ndcg'}@10"
    views = tuple(_HEADS) if show_test else ("validation",)
    results = [_result(combination, of_it, sentences, views) for combination, of_it in runs]
    results.sort(key=lambda result: -result["validation"][select_by]["mean"] if result["seeds"] else 1.0)
    return {
        "command": "sweep",
        "options": {
            "data": options.data,
            "data_sha256": data_sha256,
            "algorithms": list(options.algorithms),
            "preset": options.preset,
            "protocol": options.protocol,
            "values": {key: list(options.values[key]) for key in sorted(options.values)},
            "seeds": list(options.seeds),
        },
        "sorted_by": f"validation {select_by}",
        "results": results,
    }


def _result(
    combination: Combination,
    runs: Sequence[SweepRun],
    sentences: Mapping[str, str],
    views: Sequence[str],
) -> dict[str, Any]:
    done: list[tuple[int, dict[str, Any]]] = []
    about: list[dict[str, Any]] = []
    for run in runs:
        line: dict[str, Any] = {"seed": run.seed, "folder": run.name}
        figures = run.figures()
        if figures is not None:
            done.append((run.seed, figures))
            line |= {name: figures[name] for name in ("best_round", *views)}
        elif run.name in sentences:
            line["error"] = sentences[run.name]
        about.append(line)
    return {
        "algorithm": combination.algorithm,
        "values": dict(combination.values),
        "seeds": [seed for seed, _ in done],
        **{
            view: {at: _spread([each[view][at] for _, each in done]) for at in FIGURES}
            for view in views
            if done
        },
        "runs": about,
    }


def _spread(figures: Sequence[float]) -> dict[str, float | None]:
    """Give mean and sample standard deviation; of a single figure there is none."""
    return {"mean": mean(figures), "sd": stdev(figures) if len(figures) > 1 else None}


def table_of(content: Mapping[str, Any]) -> list[str]:
    """Give the results for people: a line for each combination, the best first, columns aligned."""
    results = content["results"]
    views = [view for view in _HEADS if any(view in result for result in results)] or ["validation"]
    heads = [f"{_HEADS[view]} {'HR' if at == 'hr@10' else 'NDCG'}@10" for view in views for at in FIGURES]
    lines = [["algorithm", *results[0]["values"], *heads, "seeds"]]
    for result in results:
        done, asked = len(result["seeds"]), len(result["runs"])
        values = [as_text(value) for value in result["values"].values()]
        shown = [_shown(result[view][at]) if done else "failed" for view in views for at in FIGURES]
        lines.append(
            [result["algorithm"], *values, *shown, str(done) if done == asked else f"{done} of {asked}"]
        )
    return aligned(lines)


def _shown(spread: Mapping[str, float | None]) -> str:
    return f"{spread['mean']:.4f}" + ("" if spread["sd"] is None else f" ± {spread['sd']:.4f}")
