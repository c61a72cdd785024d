"""In-place distillation: smaller sizes learn from the largest one's outputs.

Source: Universally Slimmable Networks (Yu and Huang, ICCV 2019).
"""

import keras
from keras import ops

_BINARY = (
    keras.losses.BinaryCrossentropy,
    keras.losses.BinaryFocalCrossentropy,
)
_CATEGORICAL = (
    keras.losses.CategoricalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
)
_BY_FUNCTION = {
    keras.losses.binary_crossentropy: keras.losses.BinaryCrossentropy,
    keras.losses.categorical_crossentropy: (
        keras.losses.CategoricalCrossentropy
    ),
    keras.losses.sparse_categorical_crossentropy: (
        keras.losses.SparseCategoricalCrossentropy
    ),
}


def per_output(value, outputs, output_names):
    """What was compiled for each output, in their flat order.

    Args:
        value: One value for all, or a list, or a dict by name.
        outputs: The outputs: a tensor, or a structure of tensors.
        output_names: Names of the outputs, for a dict beside a list.

    Returns:
        List with an entry per output, `None` where nothing was given.
    """
    if isinstance(value, dict):
        names = sorted(outputs) if isinstance(outputs, dict) else output_names
        return [value.get(name) for name in names]
    if isinstance(value, list | tuple):
        return list(value)
    return [value] * len(keras.tree.flatten(outputs))


def check_distillation_loss(loss):
    """Raises if it is neither `"auto"` nor a loss."""
    known = loss == "auto" or callable(loss)
    if isinstance(loss, str) and not known:
        try:
            known = callable(keras.losses.get(loss))
        except ValueError:
            known = False
    if not known:
        raise ValueError(
            "Argument `distillation_loss` must be 'auto', a function, a "
            "`keras.losses.Loss` or the name of one of Keras' losses, such as "
            f"'kl_divergence'. Received: distillation_loss={loss!r}"
        )


def distillation_losses(losses):
    """One distillation loss per output, derived from the compiled losses.

    Cross-entropies compare with the teacher's probabilities; every other
    loss becomes the mean squared error between the outputs.

    Args:
        losses: The compiled loss of each output, or `None`.

    Returns:
        List of callables `(teacher, student, sample_weight) -> scalar`, or
        `None` for outputs without a loss.
    """
    return [None if loss is None else _soft_loss(loss) for loss in losses]


def _soft_loss(identifier):
    loss = keras.losses.get(identifier)
    if loss in _BY_FUNCTION:
        loss = _BY_FUNCTION[loss]()
    from_logits = getattr(loss, "from_logits", False)
    if isinstance(loss, _CATEGORICAL):
        axis = getattr(loss, "axis", -1)
        soft = keras.losses.CategoricalCrossentropy(
            from_logits=from_logits, axis=axis
        )

        def categorical(teacher, student, sample_weight):
            if from_logits:
                teacher = ops.softmax(teacher, axis=axis)
            return soft(teacher, student, sample_weight)

        return categorical
    if isinstance(loss, _BINARY):
        soft_binary = keras.losses.BinaryCrossentropy(from_logits=from_logits)

        def binary(teacher, student, sample_weight):
            if from_logits:
                teacher = ops.sigmoid(teacher)
            return soft_binary(teacher, student, sample_weight)

        return binary
    return keras.losses.MeanSquaredError()
