"""Neural networks on real data as problems, one architecture per file."""

from sdelens.problems.networks._build import network, sizes_of
from sdelens.problems.networks.cnn import CNN
from sdelens.problems.networks.mlp import MLP
from sdelens.problems.networks.resnet import ResNet
from sdelens.problems.networks.transformer import Transformer
from sdelens.problems.networks.vit import ViT

__all__ = ["CNN", "MLP", "ResNet", "Transformer", "ViT", "network", "sizes_of"]
