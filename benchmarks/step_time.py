"""Step time of the hypermodel relative to a plain step of its target.

For each weight field and sampler: seconds of one compiled training step of
the hypermodel, of the plain target, their ratio, and the seconds that
generating the weights takes. Steps of both alternate, so that a machine whose
speed drifts slows both alike; the ratio is the median over blocks.

    KERAS_BACKEND=tensorflow python benchmarks/step_time.py
    KERAS_BACKEND=jax python benchmarks/step_time.py --batch-size 32
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import ops
from timing import alternate, seconds_of

import keras_neumeta as nm
from keras_neumeta.provenance import provenance

# The default, and one random size a step.
CASES = (
    ("anchored", "sandwich"),
    ("anchored", "uniform"),
    ("implicit", "uniform"),
)


def compiled(model):
    model.compile(
        keras.optimizers.SGD(1e-3, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def generation_seconds(hyper, repeats):
    """Seconds to generate the weights of one drawn size, compiled."""
    sizes = np.array(hyper.graph.sizes(0.5), "int32")
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        run = tf.function(hyper.field.generate)
        sizes = tf.constant(sizes)
        last = lambda: run(sizes)[-1].numpy()  # noqa: E731
    elif backend == "jax":
        import jax

        run = jax.jit(hyper.field.generate)
        last = lambda: jax.block_until_ready(run(sizes))  # noqa: E731
    else:
        import torch

        sizes = ops.convert_to_tensor(sizes)

        def last():
            with torch.no_grad():
                hyper.field.generate(sizes)

    last()
    return seconds_of(last, repeats)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="per block")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("benchmarks/results"),
    )
    options = parser.parse_args()
    backend = keras.backend.backend()
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x = random.normal(size=(options.batch_size, 32, 32, 3)).astype("float32")
    y = random.integers(0, 10, options.batch_size)
    target = nm.models.cifar_resnet(20)
    plain = compiled(nm.models.cifar_resnet(20))
    plain.train_on_batch(x, y)
    rows = []
    for field, sampler in CASES:
        hyper = compiled(
            nm.ManifoldHyperModel(target, field, sampler, smooth=False)
        )
        start = time.perf_counter()
        hyper.train_on_batch(x, y)
        first = time.perf_counter() - start
        seconds, plain_seconds, ratio = alternate(
            lambda h=hyper: h.train_on_batch(x, y),
            lambda: plain.train_on_batch(x, y),
            options.blocks,
            options.steps,
        )
        row = {
            "field": field,
            "sampler": sampler,
            "sizes_per_step": hyper.sampler.num_sizes,
            "hyper_seconds": seconds,
            "plain_seconds": plain_seconds,
            "ratio": ratio,
            "generation_seconds": generation_seconds(hyper, options.steps),
            "first_step_seconds": first,
        }
        rows.append(row)
        print(
            f"{backend:<11}{field:<10}{sampler:<10}"
            f"hyper {row['hyper_seconds']:.3f} s  "
            f"plain {row['plain_seconds']:.3f} s  "
            f"ratio {row['ratio']:.2f}  "
            f"generation {1000 * row['generation_seconds']:.1f} ms  "
            f"first step {first:.1f} s",
            flush=True,
        )
    options.output.mkdir(parents=True, exist_ok=True)
    result = {
        "network": "ResNet20, 32 x 32, every width",
        "batch_size": options.batch_size,
        "backend": backend,
        "rows": rows,
        "seed": 0,
        **provenance(),
    }
    path = options.output / f"step_time_{backend}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
