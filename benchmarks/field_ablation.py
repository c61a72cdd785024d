"""What each part of the default field and recipe is worth, on MNIST.

LeNet 32-64-128, every width morphs, from the same base network: one part is
changed at a time. Every finished run is written at once, and a rerun goes on
where the last one stopped.

    python benchmarks/field_ablation.py --epochs 1 --seeds 2
"""

import argparse
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import keras
import mnist_lenet
from provenance import provenance

import keras_neumeta as nm

RATIOS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875)

# Name -> arguments of the field, the sampler and the hypermodel.
VARIANTS = {
    "default": ({}, nm.Sandwich, {}),
    "correction by gains": ({"correction": "gain"}, nm.Sandwich, {}),
    "cubic interpolation": ({"interpolation": "cubic"}, nm.Sandwich, {}),
    "leading slice (stretch 0)": ({"stretch": 0.0}, nm.Sandwich, {}),
    "stretch 0.5": ({"stretch": 0.5}, nm.Sandwich, {}),
    "no smoothing": ({}, nm.Sandwich, {"smooth": False}),
    "no distillation": ({}, nm.Sandwich, {"distillation": 0.0}),
    "one uniform size": ({}, nm.Uniform, {}),
    "noise 0.5": ({}, nm.Sandwich, {"noise": 0.5}),
}


def run(variant, seed, epochs, base_weights, data, test):
    field, sampler, arguments = VARIANTS[variant]
    keras.utils.set_random_seed(seed)
    model = nm.models.lenet()
    model.load_weights(base_weights)
    hyper = nm.ManifoldHyperModel(
        model,
        nm.AnchoredField(seed=seed, **field),
        sampler(min_ratio=0.25, seed=seed),
        seed=seed,
        **arguments,
    )
    steps = -(-len(data[0]) // mnist_lenet.BATCH_SIZE) * epochs
    mnist_lenet.compile_model(hyper, steps)
    start = time.time()
    hyper.fit(
        *data, batch_size=mnist_lenet.BATCH_SIZE, epochs=epochs, verbose=2
    )
    seconds = time.time() - start
    table = nm.sweep(hyper, *test, RATIOS, batch_size=500)
    accuracies = {
        str(row["ratio"]): round(100 * row["accuracy"], 2)
        for row in table.rows
        if row["method"] == "morph"
    }
    floor = round(100 * table.rows[-1]["accuracy"], 2)
    print(variant, seed, accuracies, flush=True)
    return {
        "variant": variant,
        "seed": seed,
        "accuracy": accuracies,
        "floor": floor,
        "seconds": round(seconds, 1),
        "stored_parameters": hyper.field.count_params(),
        "target_parameters": model.count_params(),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--base-epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("benchmarks/results/field_ablation.json"),
    )
    options = parser.parse_args()
    name, data, test = mnist_lenet.load_data("mnist")
    rows = []
    if options.output.exists():
        rows = json.loads(options.output.read_text())["rows"]
    done = {(row["variant"], row["seed"]) for row in rows}
    work = pathlib.Path("outputs/field_ablation")
    work.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        base_weights = work / f"base_{options.base_epochs}_{seed}.weights.h5"
        if not base_weights.exists():
            keras.utils.set_random_seed(seed)
            model = nm.models.lenet()
            mnist_lenet.train(model, "LeNet", data, test, options.base_epochs)
            model.save_weights(base_weights)
        for variant in options.variants:
            if (variant, seed) in done:
                continue
            rows.append(
                run(variant, seed, options.epochs, base_weights, data, test)
            )
            result = {
                "dataset": name,
                "network": "LeNet 32-64-128, every width",
                "base_epochs": options.base_epochs,
                "epochs": options.epochs,
                "rows": rows,
                **provenance(),
            }
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
