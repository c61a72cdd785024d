"""Tables and figures of the results of `benchmarks/every_width.py`.

    python benchmarks/every_width_report.py benchmarks/results/every_width*.json

Writes a Markdown table and a figure (test accuracy against parameters, every
method; sizes that not all methods were tested at as open circles) beside each
file. Several seeds are averaged.
"""

import argparse
import json
import pathlib
import statistics

from keras_neumeta.figures import new_figure

ORDER = (
    "anchored",
    "implicit",
    "slimmable",
    "switchable",
    "integral",
    "individual",
    "distilled",
    "l1",
    "l2",
    "taylor",
    "hessian",
    "random",
)
SINGLE = ("individual", "distilled")
CUT = ("l1", "l2", "taylor", "hessian", "random")
# The figure is as high as these need; other methods may fall below.
FRAMING = ("anchored", "implicit", "slimmable", *SINGLE)
# One for each ten methods: there are ten colours.
STYLES = ("-", "--", ":")


def by_method(runs):
    """Dict from method to its runs, one per seed, in the order of the table."""
    methods = dict.fromkeys([*ORDER, *(run["method"] for run in runs)])
    found = {m: [r for r in runs if r["method"] == m] for m in methods}
    return {method: runs for method, runs in found.items() if runs}


def mean(runs, ratio):
    """Mean accuracy over the seeds at one ratio, and its spread."""
    values = [
        row["accuracy"]
        for run in runs
        for row in run["rows"]
        if row["ratio"] == ratio
    ]
    if not values:
        return None, 0.0
    return statistics.mean(values), max(values) - min(values)


def budget(run):
    """How long each method of a task was trained, in words."""
    if run.get("pretrained"):
        return f"{run['epochs']} epochs each, from pretrained weights."
    if not run["base_epochs"]:
        return f"{run['epochs']} epochs each."
    return (
        f"Base {run['base_epochs']} epochs, each method {run['epochs']} more; "
        "a network by itself gets the sum, from scratch."
    )


def optional(value, form):
    return "-" if value is None else format(value, form)


def table(runs):
    methods = by_method(runs)
    sizes = {
        row["ratio"]: (row["parameters"], row["macs"])
        for run in runs
        for row in run["rows"]
    }
    ratios = sorted(sizes, reverse=True)
    lines = [
        "| kept width | " + " | ".join(f"{r:g}" for r in ratios) + " | | | |",
        "|---|" + "--:|" * (len(ratios) + 3),
        "| parameters | "
        + " | ".join(f"{sizes[r][0]:,}" for r in ratios)
        + " | floor | stored | step |",
        "| MACs | "
        + " | ".join(f"{sizes[r][1]:,}" for r in ratios)
        + " | | | |",
    ]
    for method, own in methods.items():
        cells = []
        for ratio in ratios:
            value, spread = mean(own, ratio)
            cell = optional(value, ".2f")
            cells.append(cell if not spread else f"{cell} ({spread:.2f})")
        first = own[0]
        stored = first["stored"] + first.get("stored_statistics", 0)
        cells += [
            optional(first.get("floor"), ".2f"),
            f"{stored:,}",
            optional(first.get("step_time"), ".2f"),
        ]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(runs, path):
    figure = new_figure("This report", (7.2, 4.8))
    axes = figure.add_subplot()
    seen = []
    trained = {
        row["ratio"]
        for run in runs
        if run["method"] in SINGLE or run["method"] in CUT
        for row in run["rows"]
    }
    for number, (method, own) in enumerate(by_method(runs).items()):
        rows = sorted(own[0]["rows"], key=lambda row: row["parameters"])
        points = [
            (row["parameters"], mean(own, row["ratio"])[0], row["ratio"])
            for row in rows
        ]
        inside = [point[:2] for point in points if point[2] in trained]
        if method in FRAMING:
            seen += [height for _, height in inside]
        ours = method == "anchored"
        style = {
            "marker": "o",
            "markersize": 5 if ours else 3,
            "color": f"C{number % 10}",
            "zorder": 3 if ours else 2,
        }
        axes.plot(
            *zip(*inside),
            linewidth=2.5 if ours else 1,
            linestyle=STYLES[number // 10],
            label=method,
            **style,
        )
        outside = [point[:2] for point in points if point[2] not in trained]
        if outside:
            axes.plot(*zip(*outside), linestyle="", fillstyle="none", **style)
    axes.set_xscale("log")
    axes.set_xlabel("parameters of the network")
    axes.set_ylabel("test accuracy, %")
    margin = 0.1 * (max(seen) - min(seen))
    axes.set_ylim(min(seen) - margin, max(seen) + margin)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("results", type=pathlib.Path, nargs="+")
    for path in parser.parse_args().results:
        result = json.loads(path.read_text())
        runs = result["runs"]
        seeds = sorted({run["seed"] for run in runs})
        first = runs[0]
        text = (
            f"# {result['task']}\n\n"
            f"Test accuracy in percent; seeds {seeds}, where several: mean "
            f"(largest less smallest). {budget(first)} "
            f"{first['examples']:,} training images. Floor: all that morphs "
            "silenced. Stored: parameters from which all sizes come, "
            "statistics included. Step: seconds relative to a plain step of "
            "the full network (all sizes together for `individual` and "
            f"`distilled`). {first['machine']}, {first['backend']}. Made by "
            "`benchmarks/every_width.py` and `every_width_report.py`.\n\n"
        )
        path.with_suffix(".md").write_text(text + table(runs) + "\n")
        plot(runs, path.with_suffix(".png"))
        print(text + table(runs))


if __name__ == "__main__":
    main()
