"""Which networks can be the target of a hypermodel."""

import warnings

import numpy as np
from keras import ops

from keras_neumeta.graph import own_classes


def check_target(graph):
    """Raises unless there is something to learn, from finite weights."""
    model = graph.model
    if graph.sizes(1e-9) == graph.full_sizes and not graph.blocks:
        reasons = "\n".join(
            f"  {group.name}: {group.frozen}" for group in graph.groups
        )
        raise ValueError(
            f"Argument `model`: no layer of '{model.name}' can change its "
            "number of channels, so there is no other size to learn. "
            f"Reasons per channel group:\n{reasons or '  no channels found'}"
            "\nA layer without a rule can be given one: "
            "`keras_neumeta.register_rule`."
        )
    for variable in model.variables:
        value = ops.convert_to_numpy(variable)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(
                f"Argument `model`: variable '{variable.path}' of "
                f"'{model.name}' holds NaN or infinite values. Restore or "
                "retrain the model before morphing it."
            )
    if not model.trainable_variables:
        raise ValueError(
            f"Argument `model`: '{model.name}' has no trainable variables. "
            "Set `model.trainable = True`, or the layers that shall learn."
        )


def check_depth(graph, min_depth):
    """Raises unless networks of so few blocks can be had."""
    if not graph.blocks:
        raise ValueError(
            f"Argument `min_depth`: no block of '{graph.model.name}' can be "
            "left out. One can whose input is added to what its layers "
            "compute of it, if nothing else uses these layers. Received: "
            f"min_depth={min_depth!r}"
        )
    if isinstance(min_depth, bool) or not isinstance(min_depth, int):
        raise TypeError(
            "Argument `min_depth` must be an integer. Received: "
            f"min_depth={min_depth!r}"
        )
    if not 0 <= min_depth <= len(graph.blocks):
        raise ValueError(
            f"Argument `min_depth` must be in [0, {len(graph.blocks)}], the "
            "number of blocks that can be left out. Received: "
            f"min_depth={min_depth}"
        )


def warn_of_ignored(model):
    """Says what of the target its hypermodel does not do."""
    constrained = [
        layer.name
        for layer in model._flatten_layers()
        if any(
            name.endswith("_constraint") and value is not None
            for name, value in vars(layer).items()
        )
    ]
    if constrained:
        warnings.warn(
            f"The constraints of {constrained} are not applied to generated "
            "weights.",
            stacklevel=3,
        )
    for part in own_classes(model):
        if "train_step" in vars(part) or "compute_loss" in vars(part):
            warnings.warn(
                f"`{part.__name__}` has a training step or a loss of its own, "
                "which the hypermodel does not use: it learns from the loss "
                "that it is compiled with.",
                stacklevel=3,
            )
