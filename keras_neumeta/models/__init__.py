"""Plain functional Keras models that know nothing of this library."""

from keras_neumeta.models.lenet import lenet as lenet
from keras_neumeta.models.resnet import cifar_resnet as cifar_resnet
