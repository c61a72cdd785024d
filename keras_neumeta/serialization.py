"""One decorator registers classes under the package's name for saving."""

import keras

register_serializable = keras.saving.register_keras_serializable(
    package="keras_neumeta"
)
