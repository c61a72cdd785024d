"""How alike the sizes of a network are, after three kinds of training.

Trains a weight manifold, from which every size is morphed; networks of the
same sizes by themselves; and networks of the same sizes that learn from the
outputs of the full one. All get the same epochs. Then compares the sizes of
each kind, and all networks with each other: linear CKA of the features of a
layer, and KL divergence of the outputs, on the test set. Writes the matrices
and their heat maps, as in figure 9 of Neural Metamorphosis (Yang and Wang,
ECCV 2024).

    python examples/similarity.py
    python examples/similarity.py --quick
    python examples/similarity.py --dataset cifar10 --epochs 20
"""

import argparse
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import common
import keras

import keras_neumeta as nm
from keras_neumeta.provenance import provenance
from keras_neumeta.similarity import MIN_EXAMPLES

RATIOS = (1.0, 0.75, 0.5, 0.25)
KINDS = ("manifold", "individual", "distilled")
# The last features before the logits.
LAYERS = {"mnist": "conv3", "cifar10": "stage3_block0_relu2"}
EPOCHS = {"mnist": 3, "cifar10": 10}


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--dataset",
        choices=tuple(LAYERS),
        default="mnist",
        help="mnist: a LeNet; cifar10: a ResNet8 (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=common.whole(1),
        help="epochs of each network (default: 3; cifar10: 10)",
    )
    parser.add_argument(
        "--layer",
        help="whose features are compared (default: the last before the "
        "logits)",
    )
    parser.add_argument("--seed", type=common.whole(0), default=0)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="little data, two sizes, one epoch: to see that everything runs",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("outputs/similarity"),
        help="folder for the results (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def network(dataset, ratio):
    """A new network with a share of every width."""
    if dataset == "mnist":
        return nm.models.lenet([round(n * ratio) for n in (32, 64, 128)])
    widths = [round(n * ratio) for n in (16, 32, 64)]
    return nm.models.cifar_resnet(8, widths=widths)


def train_all(dataset, ratios, data, epochs, seed):
    """Dict from kind to a dict from ratio to its network."""
    train = common.train_on_arrays
    hyper = nm.ManifoldHyperModel(network(dataset, 1.0), seed=seed)
    train(hyper, "manifold, every width at once", data, epochs)
    models = {
        "manifold": dict(zip(ratios, hyper.morph(ratios))),
        "individual": {},
        "distilled": {},
    }
    for ratio in ratios:
        model = models["individual"][ratio] = network(dataset, ratio)
        train(model, f"individual {ratio:g}", data, epochs)
    for ratio in ratios:
        student = network(dataset, ratio)
        distiller = keras.distillation.Distiller(
            teacher=models["individual"][1.0],
            student=student,
            # By name, Keras takes the divergence of the logits themselves.
            distillation_losses=keras.distillation.LogitsDistillation(
                temperature=1.0, loss=keras.losses.KLDivergence()
            ),
            # From the outputs alone.
            student_loss_weight=0.0,
        )
        train(distiller, f"distilled {ratio:g}", data, epochs)
        models["distilled"][ratio] = student
    return models


def draw(result, name, output):
    """Heat maps of each kind side by side, and of all networks."""
    parts = {kind: result.select(f"{kind} *") for kind in KINDS}
    for kind, part in parts.items():
        part.labels = [label.removeprefix(f"{kind} ") for label in part.labels]
        print(f"\n{kind}: mean over the pairs {part.mean():.4f}\n{part}")
    nm.plot_similarities(parts, output / f"{name}.png")
    result.plot(output / f"{name}_all.png")


def main(arguments=None):
    options = parse_arguments(arguments)
    started = time.time()
    common.make_folder(options.output)
    quick = ("train[:1024]", "test[:512]")
    data, (x, y) = common.load_arrays(
        options.dataset, quick if options.quick else ("train", "test")
    )
    epochs = options.epochs or (1 if options.quick else EPOCHS[options.dataset])
    layer = options.layer or LAYERS[options.dataset]
    print(
        f"{options.dataset}: {len(data[0]):,} training and {len(x):,} test "
        f"images; backend {keras.backend.backend()}"
    )
    try:
        nm.cka([network(options.dataset, 1.0)], x[:MIN_EXAMPLES], layer)
    except ValueError as error:
        sys.exit(f"--layer: {common.first_line(error)}")
    keras.utils.set_random_seed(options.seed)
    ratios = (1.0, 0.25) if options.quick else RATIOS
    models = train_all(options.dataset, ratios, data, epochs, options.seed)

    table = nm.Sweep()
    for kind in KINDS:
        for ratio, model in models[kind].items():
            model.compile(**common.classifier())
            table.add(kind, ratio, model, x, y, batch_size=500, verbose=0)
    print(f"\n== {options.dataset} test set\n{table}")

    every = {
        f"{kind} {ratio:g}": model
        for kind in KINDS
        for ratio, model in models[kind].items()
    }
    print(f"\n== CKA of '{layer}'")
    cka = nm.cka(every, x, layer, batch_size=256)
    draw(cka, "cka", options.output)
    print("\n== KL divergence of the outputs")
    kl = nm.kl_divergence(every, x, from_logits=True, batch_size=256)
    draw(kl, "kl", options.output)

    result = {
        "dataset": options.dataset,
        "layer": layer,
        "epochs": epochs,
        "seed": options.seed,
        "quick": options.quick,
        "cka": cka.to_dict(),
        "kl": kl.to_dict(),
        "rows": table.rows,
        **provenance(),
    }
    path = options.output / "result.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nHeat maps: {options.output}/cka.png, kl.png, cka_all.png, ...")
    print(f"Matrices: {path}")
    print(f"Done in {time.time() - started:.0f} s.")
    return cka, kl


if __name__ == "__main__":
    main()
