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


def distillation_losses(loss, output_names, num_outputs):
    """One distillation loss per output, derived from the compiled loss.

    Cross-entropies compare with the teacher's probabilities; every other
    loss becomes the mean squared error between the outputs.

    Args:
        loss: As given to `compile`.
        output_names: Names of the outputs.
        num_outputs: Their number.

    Returns:
        List of callables `(teacher, student, sample_weight) -> scalar`.
    """
    if isinstance(loss, dict):
        flat = [loss.get(name) for name in output_names]
    elif isinstance(loss, list | tuple):
        flat = list(keras.tree.flatten(loss))
    else:
        flat = [loss] * num_outputs
    return [_soft_loss(identifier) for identifier in flat]


def _soft_loss(identifier):
    loss = keras.losses.get(identifier) if identifier is not None else None
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
    squared = keras.losses.MeanSquaredError()
    return squared
