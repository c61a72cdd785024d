"""Tables and figures of the results of `benchmarks/every_width.py`.

    python benchmarks/every_width_report.py benchmarks/results/every_width*.json

Writes a Markdown table and a figure (test accuracy against parameters, without
the methods that fall far below the others; sizes that not all methods were
tested at as open circles; of the seeds that most methods have) beside each
file. Several seeds are averaged.
"""

import argparse
import collections
import json
import pathlib
import statistics

from keras_neumeta.figures import new_figure

ORDER = (
    "anchored",
    "random sizes of all",
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
# The first of these that a file has is drawn as ours.
OURS = ("anchored", "random sizes of all")
# The figure is as high as these need; other methods may fall below.
FRAMING = (*OURS, "implicit", "slimmable", *SINGLE)
# One for each ten methods: there are ten colours.
STYLES = ("-", "--", ":")


def by_method(runs):
    """Dict from method to its runs, one per seed, in the order of the table."""
    methods = dict.fromkeys([*ORDER, *(run["method"] for run in runs)])
    found = {m: [r for r in runs if r["method"] == m] for m in methods}
    return {method: runs for method, runs in found.items() if runs}


def mean(runs, ratio, key="accuracy"):
    """Mean accuracy over the seeds at one ratio, and its spread."""
    values = [
        row[key]
        for run in runs
        for row in run["rows"]
        if row["ratio"] == ratio and key in row
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


def paces(runs):
    """Which methods learned at another rate than the others, in words."""
    slower = {
        run["method"]: run["pace"] for run in runs if run.get("pace", 1.0) != 1
    }
    if not slower:
        return ""
    listed = ", ".join(f"`{method}` {p:g}" for method, p in slower.items())
    return f"Factors of the others' learning rate: {listed}. "


def are_averaged(runs):
    return any("averaged" in row for run in runs for row in run["rows"])


def averages(runs):
    """What is averaged, in words, where anything is."""
    if not are_averaged(runs):
        return ""
    return (
        "Averaged: the weights of 50 samples, read within a quarter of a "
        "channel to either side. "
    )


def common_ratios(runs):
    """The ratios that all methods were tested at."""
    tested = [{row["ratio"] for row in run["rows"]} for run in runs]
    return set.intersection(*tested)


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
        cells = accuracies(own, ratios)
        stored = own[0]["stored"] + own[0].get("stored_statistics", 0)
        floor, step = (
            [run[key] for run in own if run.get(key) is not None]
            for key in ("floor", "step_time")
        )
        cells += [
            optional(statistics.mean(floor) if floor else None, ".2f"),
            f"{stored:,}",
            optional(statistics.mean(step) if step else None, ".2f"),
        ]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
        if are_averaged(own):
            cells = [*accuracies(own, ratios, "averaged"), "", "", ""]
            lines.append(f"| {method}, averaged | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def between(runs):
    """What statistics measured anew would change between the tested sizes."""
    with_them = {
        method: [run for run in own if run.get("between")]
        for method, own in by_method(runs).items()
    }
    with_them = {method: own for method, own in with_them.items() if own}
    if not with_them:
        return ""
    first = next(iter(with_them.values()))[0]
    ratios = [ratio for ratio, _, _ in first["between"]]
    lines = [
        "",
        "",
        "Accuracy with the statistics kept while training, and how much more "
        "(mean over the seeds) it is than with statistics measured anew:",
        "",
        "| kept width | " + " | ".join(f"{r:g}" for r in ratios) + " |",
        "|---|" + "--:|" * len(ratios),
    ]
    for method, own in with_them.items():
        cells = []
        for sizes in zip(*(run["between"] for run in own), strict=True):
            kept = statistics.mean(accuracy for _, accuracy, _ in sizes)
            anew = statistics.mean(accuracy for _, _, accuracy in sizes)
            cells.append(f"{kept:.2f} ({kept - anew:+.2f})")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def accuracies(runs, ratios, key="accuracy"):
    """Cells of a row: the mean, and the spread if there is one."""
    cells = []
    for ratio in ratios:
        value, spread = mean(runs, ratio, key)
        cell = optional(value, ".2f")
        cells.append(cell if not spread else f"{cell} ({spread:.2f})")
    return cells


def of_common_seeds(runs):
    """The runs of the seeds that most methods have."""
    counts = collections.Counter(run["seed"] for run in runs)
    most = max(counts.values())
    return [run for run in runs if counts[run["seed"]] == most]


def plot(runs, path):
    runs = of_common_seeds(runs)
    methods = by_method(runs)
    common = common_ratios(runs)
    lines = {}
    for number, (method, own) in enumerate(methods.items()):
        points = sorted(
            (row["parameters"], mean(own, row["ratio"])[0], row["ratio"])
            for row in own[0]["rows"]
        )
        lines[method] = (
            [point[:2] for point in points if point[2] in common],
            [point[:2] for point in points if point[2] not in common],
            f"C{number % 10}",
            STYLES[number // 10 % len(STYLES)],
        )
    framing = [method for method in lines if method in FRAMING] or list(lines)
    seen = [height for m in framing for _, height in lines[m][0]]
    margin = 0.1 * (max(seen) - min(seen)) or 1.0
    least = min(seen) - margin
    most_ours = next((method for method in OURS if method in lines), None)
    figure = new_figure("This report", (8.4, 4.8))
    axes = figure.add_subplot()
    for method, (inside, outside, color, linestyle) in lines.items():
        # All of it but the full size below the frame.
        if max(height for _, height in inside[:-1] or inside) < least:
            continue
        ours = method == most_ours
        style = {
            "marker": "o",
            "markersize": 5 if ours else 3,
            "color": color,
            "zorder": 3 if ours else 2,
        }
        axes.plot(
            *zip(*inside),
            linewidth=2.5 if ours else 1,
            linestyle=linestyle,
            label=method,
            **style,
        )
        outside = [point for point in outside if point[1] >= least]
        if outside:
            axes.plot(*zip(*outside), linestyle="", fillstyle="none", **style)
    axes.set_xscale("log")
    axes.set_xlabel("parameters of the network")
    axes.set_ylabel("test accuracy, %")
    axes.set_ylim(least, max(seen) + margin)
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize=8, loc="outside right upper")
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
            f"{first['examples']:,} training images. {paces(runs)}Floor: all "
            "that morphs silenced. Stored: parameters from which all sizes "
            "come, statistics included. Step: seconds relative to a plain "
            "step of the full network (all sizes together for `individual` and "
            f"`distilled`). {averages(runs)}{first['machine']}, "
            f"{first['backend']}. Made by `benchmarks/every_width.py` and "
            "`every_width_report.py`.\n\n"
        )
        text += table(runs) + between(runs)
        path.with_suffix(".md").write_text(text + "\n")
        plot(runs, path.with_suffix(".png"))
        print(text)


if __name__ == "__main__":
    main()
