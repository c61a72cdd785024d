"""Every architecture of `keras.applications`: traced, smoothed and morphed.

For each one, without pretrained weights and at a small input: parameters, the
share of them in weights that change, parameters and multiply-accumulates at
ratio 0.5 and 0.25, and the seconds to trace, to smooth and to morph. Checks
that smoothing leaves the outputs as they are, that the morphed networks are
of the size that the channel graph announced, run, and are the same after
saving and loading; and that channel cutting leaves a consistent network.

Each architecture runs in a process of its own and is written at once; those
that the file has are left out, so that the script goes on where it stopped.

    python benchmarks/applications.py
    python benchmarks/applications.py --only ResNet152 --output table.json
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from keras_neumeta.provenance import provenance

RATIOS = (0.5, 0.25)
# The smallest side that the architecture takes, where it is not 32.
SIDES = {"Inception": 75, "Xception": 71}


def architectures():
    """Names of the functions that make a model, small networks first."""
    import keras

    names = [
        name
        for name in dir(keras.applications)
        if name[0].isupper() and callable(getattr(keras.applications, name))
    ]
    large = ("NASNetLarge", "XLarge", "ConvNeXtLarge", "V2L", "B7", "B6")
    return sorted(names, key=lambda name: (name.endswith(large), name))


def side_of(name):
    return next((s for k, s in SIDES.items() if name.startswith(k)), 32)


def timed(function):
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def difference(first, second):
    """Largest difference of two outputs, relative to their size."""
    import numpy as np

    first, second = np.asarray(first), np.asarray(second)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("outputs are not finite")
    return float(np.abs(first - second).max() / np.abs(first).max())


def measure(name, effort):
    """Row of the table for one architecture."""
    import keras
    import numpy as np

    import keras_neumeta as nm

    keras.utils.set_random_seed(0)
    side = side_of(name)
    build = getattr(keras.applications, name)
    model, build_seconds = timed(
        lambda: build(weights=None, input_shape=(side, side, 3))
    )
    # Logits, since probabilities of 1,000 classes hide differences.
    model.layers[-1].activation = keras.activations.linear
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith(("beta", "bias")):
            variable.assign(random.normal(size=variable.shape) * 0.1)
    # Statistics that fit: else outputs grow from block to block, until the
    # last digit of the input decides them.
    images = random.uniform(0, 255, (32, side, side, 3)).astype("float32")
    nm.calibrate(model, images)
    x = images[:2]

    def run(network):
        return network(x, training=False)

    graph, trace_seconds = timed(lambda: nm.trace(model))
    total = graph.count_params()
    row = {
        "name": name,
        "input": [side, side, 3],
        "parameters": total,
        "macs": graph.count_macs(),
        "morphable_share": graph.morphable_share,
        "groups": len(graph.groups),
        "morphable_groups": len(graph.morphable_groups),
        "frozen": sorted({g.frozen for g in graph.groups if not g.morphable}),
        "build_seconds": build_seconds,
        "trace_seconds": trace_seconds,
    }
    if total != model.count_params():
        raise ValueError("the channel graph counts other parameters")
    smoothed, row["smooth_seconds"] = timed(
        lambda: nm.smooth(model, verbose=False, effort=effort)
    )
    row["smooth_difference"] = difference(run(model), run(smoothed))
    if row["smooth_difference"] > 1e-3:
        raise ValueError("smoothing changed the outputs")
    row["variation"] = [nm.total_variation(m) for m in (model, smoothed)]
    hyper, row["hypermodel_seconds"] = timed(
        lambda: nm.ManifoldHyperModel(
            smoothed, sampler=nm.Uniform(), smooth=False
        )
    )
    for ratio in RATIOS:
        small, seconds = timed(lambda ratio=ratio: hyper.morph(ratio))
        sizes = graph.sizes(ratio)
        if small.count_params() != graph.count_params(sizes):
            raise ValueError("the morphed network has other parameters")
        result = {
            "parameters": small.count_params(),
            "macs": graph.count_macs(sizes),
            "morph_seconds": seconds,
        }
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "small.keras")
            small.save(path)
            again = keras.saving.load_model(path)
        result["reload_difference"] = difference(run(small), run(again))
        row[str(ratio)] = result
        del small, again
    pruned = nm.cut(smoothed, keep=0.5)
    row["cut_parameters"] = pruned.count_params()
    difference(run(pruned), run(pruned))  # runs, and is finite
    return row


def table(rows):
    lines = [
        "| architecture | parameters | morphable | at 0.5 | at 0.25 | MACs "
        "at 0.5 | at 0.25 | trace | smooth | morph |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(rows, key=lambda row: row["name"]):
        half, quarter = row["0.5"], row["0.25"]
        lines.append(
            f"| {row['name']} | {row['parameters'] / 1e6:.1f} M "
            f"| {100 * row['morphable_share']:.2f} % "
            f"| {half['parameters'] / row['parameters']:.1%} "
            f"| {quarter['parameters'] / row['parameters']:.1%} "
            f"| {half['macs'] / row['macs']:.1%} "
            f"| {quarter['macs'] / row['macs']:.1%} "
            f"| {row['trace_seconds']:.1f} s | {row['smooth_seconds']:.0f} s "
            f"| {half['morph_seconds']:.1f} s |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="*", help="names; default: all")
    parser.add_argument(
        "--effort",
        type=float,
        default=0.0,
        help="of the path search (default 0: random weights have no order)",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("benchmarks/results/applications.json"),
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("ROW " + json.dumps(measure(options.one, options.effort)))
        return
    result = {"rows": [], "failed": {}}
    if options.output.exists():
        result = json.loads(options.output.read_text())
    done = {row["name"] for row in result["rows"]}
    for name in options.only or architectures():
        if name in done:
            continue
        process = subprocess.run(
            [sys.executable, __file__, "--one", name]
            + ["--effort", str(options.effort)],
            capture_output=True,
            text=True,
        )
        rows = [
            json.loads(line[4:])
            for line in process.stdout.splitlines()
            if line.startswith("ROW ")
        ]
        if rows:
            result["rows"] += rows
            result["failed"].pop(name, None)
            print(table(rows).splitlines()[-1], flush=True)
        else:
            last = (process.stderr.strip().splitlines() or ["killed"])[-1]
            result["failed"][name] = last
            print(f"{name} FAILED: {last}", flush=True)
        result.update(
            seed=0,
            effort=options.effort,
            **provenance(),
        )
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    write_table(result, options.output.with_suffix(".md"))


def write_table(result, path):
    text = table(result["rows"])
    print(text)
    path.write_text(
        "# Architectures of `keras.applications`\n\n"
        "Shares are of the full size. Seconds on "
        f"{result['machine']}, {result['backend']}; smoothing with "
        f"`effort={result['effort']:g}`, as the weights are random. Made by "
        f"`benchmarks/applications.py` on {result['date']}."
        f"{result.get('note', '')}\n\n{text}\n"
    )


if __name__ == "__main__":
    main()
