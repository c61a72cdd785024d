"""Permutation preprocessing: folding and smoothing of a trained network."""

from keras_neumeta.smoothing.fold import fold_batch_norm as fold_batch_norm
from keras_neumeta.smoothing.smooth import smooth as smooth
from keras_neumeta.smoothing.smooth import sort_channels as sort_channels
from keras_neumeta.smoothing.smooth import total_variation as total_variation
