"""Small networks to train without a framework, over a FlatParams."""

from fastgd.nn.mlp import MLP

__all__ = ["MLP"]
