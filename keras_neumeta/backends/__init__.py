# mypy: disable-error-code="assignment"
"""One thin adapter per backend: who takes gradients and who applies them.

Each module holds a class `GradientStep` with a `train_step`, mixed into
`ManifoldHyperModel`, and functions `gradients` for a plain model and
`num_replicas`. Everything else is backend-neutral.
"""

import keras

if keras.backend.backend() == "tensorflow":
    from keras_neumeta.backends.tensorflow import GradientStep as GradientStep
    from keras_neumeta.backends.tensorflow import gradients as gradients
    from keras_neumeta.backends.tensorflow import num_replicas as num_replicas
elif keras.backend.backend() == "jax":
    from keras_neumeta.backends.jax import GradientStep as GradientStep
    from keras_neumeta.backends.jax import gradients as gradients
    from keras_neumeta.backends.jax import num_replicas as num_replicas
elif keras.backend.backend() == "torch":
    from keras_neumeta.backends.torch import GradientStep as GradientStep
    from keras_neumeta.backends.torch import gradients as gradients
    from keras_neumeta.backends.torch import num_replicas as num_replicas
else:
    raise ImportError(
        "keras_neumeta runs on the Keras backends 'tensorflow', 'jax' and "
        f"'torch'. Received: {keras.backend.backend()!r}. Set the environment "
        "variable KERAS_BACKEND before Keras is imported."
    )
