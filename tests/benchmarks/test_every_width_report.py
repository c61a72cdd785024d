"""The report of `benchmarks/every_width.py`, for any set of methods."""

import importlib
import json
import pathlib
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
SIZES = {1.0: 100, 0.6: 50, 0.25: 10}


def run(method, accuracy, ratios):
    return {
        "method": method,
        "seed": 0,
        "rows": [
            {
                "ratio": ratio,
                "accuracy": accuracy * ratio**0.1,
                "parameters": SIZES[ratio],
                "macs": 10 * SIZES[ratio],
            }
            for ratio in ratios
        ],
        "stored": 110,
        "base_epochs": 0,
        "epochs": 1,
        "examples": 60,
        "machine": "a machine",
        "backend": "a backend",
    }


@pytest.mark.parametrize(
    "methods",
    [
        ["anchored"],
        ["anchored", "individual", "l1"],
        ["l1 tuned", "no level"],
        [f"method {number}" for number in range(40)],
    ],
    ids=len,
)
def test_report_of_any_methods(methods, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    report = importlib.import_module("every_width_report")
    runs = [
        run(m, 90, (1.0, 0.25) if m in ("individual", "l1") else SIZES)
        for m in methods
    ]
    path = tmp_path / "every_width_task.json"
    path.write_text(json.dumps({"task": "task", "runs": runs}))
    monkeypatch.setattr(sys, "argv", ["report", str(path)])
    report.main()
    table = path.with_suffix(".md").read_text()
    assert all(f"| {method} | 90.00 |" in table for method in methods)
    assert ", averaged |" not in table
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_averages_have_a_row_of_their_own(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    report = importlib.import_module("every_width_report")
    runs = [run("stretch 1", 80, SIZES) for _ in range(2)]
    for number, row in enumerate(r for each in runs for r in each["rows"]):
        row["averaged"] = 70 + 2 * (number // 3)
    text = report.table(runs)
    assert "| stretch 1 | 80.00 |" in text
    assert "| stretch 1, averaged | 71.00 (2.00) |" in text


def test_figures_compare_the_same_seeds(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    report = importlib.import_module("every_width_report")
    seeds = {"anchored": (0, 1), "individual": (0, 2), "l1": (0, 1)}
    runs = [
        {**run(method, 80, SIZES), "seed": seed}
        for method, several in seeds.items()
        for seed in several
    ]
    assert {each["seed"] for each in report.of_common_seeds(runs)} == {0}
    late = {**run("late", 80, SIZES), "seed": 1}
    assert late not in report.of_common_seeds([*runs, *runs[:1], late])
    assert len(report.of_common_seeds(runs[:2])) == 2
    apart = [runs[1], runs[3]]
    assert report.of_common_seeds(apart) == apart
