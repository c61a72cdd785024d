"""
Title: Choosing a field and a recipe
Description: How to read the benchmark tables, and what not to conclude.
"""

"""
## Start with the defaults

`nm.ManifoldHyperModel(model)` is the `AnchoredField` with a level at a quarter,
the `Sandwich` sampler and a distillation of 0.5. Change one thing at a time,
and only after you have seen a reason in *your* numbers. This guide shows how to
look at such numbers, on the results that the repository keeps in
`benchmarks/results`.

Nothing is trained here.

## Set-up
"""

import json
import os
import pathlib
import sys

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import matplotlib.pyplot as plt
import numpy as np

import keras_neumeta as nm

sys.path.append("../benchmarks")  # Run this in the folder `guides`.
from every_width_report import by_method, mean

RESULTS = pathlib.Path("../benchmarks/results")
result = json.loads((RESULTS / "every_width_mnist-lenet.json").read_text())
methods = by_method(result["runs"])

"""
## What was compared

A line of a benchmark table means little without its terms. Here they are for
the LeNet on MNIST, in which every width morphs:
"""

for method, runs in methods.items():
    first = runs[0]
    print(
        f"{method:19} {len(runs)} seed(s), {first['base_epochs']} + "
        f"{first['epochs']} epochs of {first['examples']:,} images"
    )
print(f"\nbackend {first['backend']}, {first['date']}, {first['versions']}")

"""
- `anchored`, `implicit`, `slimmable`, `switchable`, `integral`: one set of
  weights for all sizes; the last three with the recipe of their own papers.
- `individual`: a network per size, trained by itself from scratch with as many
  steps. `distilled`: the same, taught by the full-size network.
- `l1`, `l2`, `taylor`, `hessian`, `random`: the full-size network with its
  least important channels removed, and no training after that. `l1 tuned`: half
  of the steps before the cut and half after it, once per size.
- `random sizes of all`: `anchored` with random sizes from all of the range
  rather than from 0.75 down. `no level`: the same without corrections for the
  smallest sizes.

The script is `benchmarks/every_width.py`; the whole table with parameters and
MACs is [here](../benchmarks/results/every_width_mnist-lenet.md).
"""

ratios = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875)


def cells(method):
    for ratio in ratios:
        value, _ = mean(methods[method], ratio)
        yield "     -" if value is None else f"{value:6.2f}"


print(f"{'kept width':19}", *(f"{ratio:6}" for ratio in ratios), " floor")
for method, (first, *_) in methods.items():
    floor = first.get("floor")
    end = "     -" if floor is None else f"{floor:6.2f}"
    print(f"{method:19}", *cells(method), end)

"""
## The floor

The floor is the accuracy with all that can morph set to zero. Here every width
morphs, so the floor is that of guessing. Where only a part of a network morphs,
the rest may do most of the work by itself: the floor is then high, all sizes
are above it, and the table looks good whatever the method. So read the distance
to the floor, beside the share of parameters and MACs that a size saves.
`nm.sweep` prints both.

The columns below say how much of the distance between floor and full size each
size keeps.
"""

for method in ("anchored", "slimmable", "integral", "implicit"):
    (first, *_) = methods[method]
    full, _ = mean(methods[method], 1.0)
    kept = [
        (mean(methods[method], ratio)[0] - first["floor"])
        / (full - first["floor"])
        for ratio in ratios
    ]
    print(f"{method:19}", *(f"{100 * share:6.1f}" for share in kept))

"""
## How large a difference is real?

Two things blur each number. The *test set* is a sample: of 10,000 images, with
the accuracy `p`, the standard error is `sqrt(p (1 - p) / 10000)`. And a *seed*
is a sample of trainings: with one seed, its effect is not known at all.

The bars are two standard errors of the test set, and say nothing of the seed.
"""

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for number, method in enumerate(
    ("anchored", "individual", "distilled", "l1 tuned", "slimmable")
):
    points = [(r, mean(methods[method], r)[0]) for r in ratios[:-1]]
    places, values = np.transpose([p for p in points if p[1] is not None])
    share = values / 100
    bars = 200 * np.sqrt(share * (1 - share) / 10_000)
    axes.errorbar(
        places + 0.006 * (number - 2),
        values,
        bars,
        marker="o",
        markersize=4,
        linewidth=1,
        capsize=2,
        label=method,
    )
axes.set(xlabel="kept width", ylabel="test accuracy, %")
axes.invert_xaxis()
axes.legend()
axes.grid(alpha=0.3)

"""
Where bars overlap widely, the order of two methods is not known. Where they do
not, it is known for these seeds, this network and this budget.

## Below the trained range

The sizes of training ended at 0.25. At 0.1875 nobody has looked while training.
`anchored` and `random sizes of all` are the network at 0.25 there without the
channels that the others replace best, their part handed on; all other rows read
the field as it is, and most fall far. If you need that size, train down to it
all the same:
`sampler=nm.Sandwich(min_ratio=0.1)`. How much a network can spare differs: see
the rows of the ResNets.

## The price of training

All methods saw equally many *steps*, and steps differ. `step` is the time of
one relative to a plain step of the full network; for `individual` and
`distilled`, of all their sizes together. `stored` is the number of parameters
from which all sizes come, `statistics` what is kept beside them: batch-norm
statistics, and the moments by which some channels stand for others.
"""

for method, (first, *_) in methods.items():
    if first.get("step_time") is not None:
        print(
            f"{method:19} step {first['step_time']:5.2f}   "
            f"stored {first['stored']:7,}   "
            f"statistics {first.get('stored_statistics', 0):6,}"
        )

"""
At equal *time* the cheap ones would get more steps. For a few fixed sizes,
networks by themselves may be the better bargain: they need no more training
time than the manifold did here. What the manifold buys is all sizes in between,
one file, and sizes that agree with each other (`examples/similarity.py`).

## What not to conclude

- That the order of methods holds for another network, data set or budget. A
  field that is behind after five epochs may need more of them.
- That a number of a paper can be put beside a number here, unless budget, data
  and the part that morphs are the same.
- That accuracy is speed. MACs and parameters are counted; time on your device
  has to be measured there (`deploying`).
- That channel cutting is as bad as its rows without training: `l1 tuned` is the
  fair one.

## Choosing a field

| field | reads | take it |
|---|---|---|
| `AnchoredField(levels=(0.25,))`, the default | the leading channels | first |
| `AnchoredField()` | the same, without levels | to store no more |
| `AnchoredField(stretch=1)` | in between channels | for sizes above full |
| `ImplicitField()` | a network over coordinates | to study the method |
| `SlimmableField()` | the leading channels, unscaled | to compare |
| `IntegralField()` | in between channels | to compare |

What each stores for the LeNet, beside the network's own parameters:
"""

network = nm.models.lenet()
fields = {
    "AnchoredField(levels=(0.25,))": nm.AnchoredField(levels=(0.25,)),
    "AnchoredField()": nm.AnchoredField(),
    "AnchoredField(stretch=1)": nm.AnchoredField(stretch=1),
    "ImplicitField()": nm.ImplicitField(),
    "SlimmableField()": nm.SlimmableField(),
    "IntegralField()": nm.IntegralField(),
}
print(f"{'the network':30} {network.count_params():8,}")
for title, field in fields.items():
    # One size suffices to count.
    sampler = nm.Switches((1.0,))
    hyper = nm.ManifoldHyperModel(
        network, field, sampler, smooth=False, imitate=False
    )
    print(f"{title:30} {hyper.field.count_params():8,}")

"""
## Choosing a recipe

| you want | say |
|---|---|
| a few known widths, nothing else | `sampler=nm.Switches((1.0, 0.5, 0.25))` |
| a width per group in `morph` | the default, then `sampler="independent"` |
| very small sizes | `sampler=nm.Sandwich(min_ratio=0.1)` |
| a cheaper step, large sizes first | `sampler=nm.Sandwich(num_random=0)` |
| all sizes above 0.75 trained too | `sampler=nm.Sandwich(max_random=1.0)` |
| the cheapest step | `sampler="uniform"`, `distillation=0.0` |
| a pretrained network to stay close | a high `reconstruction` |
| fewer blocks too | `min_depth=2` |

What each setting changes for a LeNet, one at a time:
[table](../benchmarks/results/ablation/every_width_mnist-lenet.md).

Then:

1. Train the network itself first, or start untrained: both work. Count these
   steps when you compare.
2. Use the optimizer and schedule that suit the network. The sum over sizes
   makes gradients larger; the full size alone sees what it would see by itself.
3. Look at `nm.sweep(..., cut=True)`: at every size, at the floor, at the cut.
4. Train one small network by itself, for as many steps. If it is better than
   the morphed one of its size, train the manifold for longer.
5. Change one thing, keep the seed, and repeat with other seeds what you want to
   report.

Your own comparison on one of the tasks, with methods by name:

```
python benchmarks/every_width.py mnist-lenet --seed 1 \\
    --methods anchored "no distillation" individual
python benchmarks/every_width_report.py benchmarks/results/every_width*.json
```
"""
