"""Length and time of `shortest_path` beside other solvers.

The instances are L1 distances between rows: random kernels of few and many
dimensions (`gauss32`, `gauss1000`), points of the plane (`plane`), rows along
a noisy curve (`curve`) and, with `--weights`, the channels inside the blocks
of a trained CIFAR-10 ResNet (`inner`) read from an `.npz` file with arrays
`stage{s}.block{b}.conv{1,2}.kernel`.

`best_known` holds the lengths of paths that LKH found, run once (elkai 2.0.1:
1 to 10 runs, more on the smaller instances). `fast_tsp`, where it is
installed, gets as many seconds as `shortest_path` took of CPU time, but at
most 10. CPU time stands beside the wall's, as other work on the machine
lengthens the latter.

Example:

    python benchmarks/path_benchmark.py --output path.json
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist

from keras_neumeta.provenance import provenance
from keras_neumeta.smoothing.path import path_length, shortest_path

try:
    import fast_tsp
except ImportError:
    fast_tsp = None

SIZES = (64, 128, 256, 512, 1024, 2048)
BEST_KNOWN = {
    "gauss32_64": 1759.504992,
    "gauss1000_64": 68493.318358,
    "plane_64": 7.596337,
    "curve_64": 1522.487385,
    "gauss32_128": 3478.093654,
    "gauss1000_128": 137448.901651,
    "plane_128": 10.678963,
    "curve_128": 2880.412757,
    "gauss32_256": 6706.098788,
    "gauss1000_256": 273970.749902,
    "plane_256": 14.527394,
    "curve_256": 5580.746753,
    "gauss32_512": 13094.412265,
    "gauss1000_512": 547936.843038,
    "plane_512": 20.513832,
    "curve_512": 11020.994556,
    "gauss32_1024": 25446.826048,
    "gauss1000_1024": 1091781.772130,
    "plane_1024": 28.886614,
    "curve_1024": 21686.439972,
    "gauss32_2048": 49441.815944,
    "gauss1000_2048": 2175236.088087,
    "plane_2048": 40.717788,
    "curve_2048": 42866.750664,
    "inner_resnet20_64": 4768.854629,
    "inner_resnet20_128": 11058.513271,
    "inner_resnet56_64": 2044.607993,
    "inner_resnet56_128": 7633.578476,
    "inner_resnet56_256": 15549.482870,
    "inner_resnet56_512": 26716.328942,
}


def synthetic_rows(size):
    """Yields `(name, rows)`: the instances made of random numbers."""
    random = np.random.default_rng(size)
    yield "gauss32", random.normal(size=(size, 32))
    yield "gauss1000", random.normal(size=(size, 1000))
    yield "plane", random.random((size, 2))
    place = random.random((size, 1))
    frequency = random.normal(size=(1, 200)) * 4
    curve = np.sin(place * frequency + random.random((1, 200)) * 6)
    yield "curve", curve + 0.1 * random.normal(size=(size, 200))


def trained_rows(file):
    """Yields `(name, rows)`: the last block's inner channels, then those of
    more and more blocks of the last stage, taken together."""
    weights = np.load(file)
    network = Path(file).stem.split("_")[0]
    rows = []
    block = 0
    while f"stage3.block{block}.conv1.kernel" in weights:
        first = weights[f"stage3.block{block}.conv1.kernel"]
        second = weights[f"stage3.block{block}.conv2.kernel"]
        outputs, inputs = first.shape[-1], second.shape[-2]
        rows.append(
            np.concatenate(
                [
                    np.moveaxis(first, -1, 0).reshape(outputs, -1),
                    np.moveaxis(second, -2, 0).reshape(inputs, -1),
                ],
                axis=1,
            )
        )
        block += 1
    yield f"inner_{network}", rows[-1]
    # The first block reads fewer channels, so that its rows are shorter.
    rows = np.concatenate(rows[1:])
    for size in SIZES[1:]:
        if size <= len(rows):
            yield f"inner_{network}", rows[:size]


def fast_tsp_length(distances, seconds):
    """Length of the path `fast_tsp` finds, which takes 16-bit integers."""
    size = len(distances)
    scaled = np.zeros((size + 1, size + 1))
    scaled[:size, :size] = distances * (65000 / distances.max())
    tour = fast_tsp.find_tour(
        np.round(scaled).astype("int64"), duration_seconds=seconds
    )
    start = tour.index(size)
    return path_length(distances, tour[start + 1 :] + tour[:start])


def measure(name, rows, seed):
    distances = cdist(rows, rows, "cityblock")
    size = len(distances)
    wall, cpu = time.perf_counter(), time.process_time()
    order = shortest_path(distances, seed=seed)
    seconds = time.perf_counter() - wall
    cpu_seconds = time.process_time() - cpu
    length = path_length(distances, order)
    result = {
        "instance": name,
        "n": size,
        "length": length,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "identity_ratio": path_length(distances) / length,
    }
    best_known = BEST_KNOWN.get(f"{name}_{size}")
    if best_known is not None:
        result["best_known"] = best_known
        result["best_known_ratio"] = length / best_known
    if fast_tsp is not None:
        start = time.perf_counter()
        other = fast_tsp_length(distances, min(cpu_seconds, 10.0))
        result["fast_tsp_length"] = other
        result["fast_tsp_seconds"] = round(time.perf_counter() - start, 3)
        result["fast_tsp_ratio"] = length / other
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--weights", nargs="*", default=[])
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    instances = []
    for size in arguments.sizes:
        instances += synthetic_rows(size)
    for file in arguments.weights:
        instances += trained_rows(file)
    print("instance           n      length  seconds   /LKH  /fast_tsp")
    results = []
    for name, rows in instances:
        result = measure(name, rows, arguments.seed)
        results.append(result)
        print(
            f"{name:14s} {result['n']:5d} {result['length']:11.6g} "
            f"{result['seconds']:8.2f} "
            f"{result.get('best_known_ratio', float('nan')):.4f} "
            f"{result.get('fast_tsp_ratio', float('nan')):.4f}",
            flush=True,
        )
    report = {
        **provenance("scipy", "fast_tsp"),
        "seed": arguments.seed,
        "results": results,
    }
    if arguments.output:
        with open(arguments.output, "w") as file:
            json.dump(report, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
