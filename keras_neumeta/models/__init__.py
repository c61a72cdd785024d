"""Plain functional Keras models; `Sampling` is the one layer of our own."""

from keras_neumeta.models.lenet import lenet as lenet
from keras_neumeta.models.resnet import cifar_resnet as cifar_resnet
from keras_neumeta.models.resnet import resnet18 as resnet18
from keras_neumeta.models.unet import unet as unet
from keras_neumeta.models.vae import Sampling as Sampling
from keras_neumeta.models.vae import conv_vae as conv_vae
from keras_neumeta.models.vae import dense_vae as dense_vae
from keras_neumeta.models.vae import split_vae as split_vae
