"""A multi-layer perceptron for classification, with its gradient by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastgd.flat import FlatParams
from fastgd.kernels.errors import ArrayError, HyperparameterError
from fastgd.memory import namespace


@dataclass(frozen=True)
class MLP:
    """Dense layers with ReLU between them, and softmax cross-entropy on the last.

    Parameters
    ----------
    widths : sequence of int
        Features, widths of the hidden layers, classes: at least two numbers, each >= 1.

    Raises
    ------
    HyperparameterError
        For other widths.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> net = fastgd.nn.MLP((2, 8, 2))
    >>> params = net.init(seed=0)
    >>> x = np.float32([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> y = np.array([0, 1, 1, 0])
    >>> history = fastgd.fit(net.loss_and_grad, fastgd.Adam(params, lr=0.05), (x, y), epochs=200)
    >>> net.predict(params, x).tolist()
    [0, 1, 1, 0]
    """

    widths: Sequence[int]

    def __post_init__(self) -> None:
        """Check the widths."""
        widths = tuple(self.widths)
        if len(widths) < 2 or not all(isinstance(w, int) and not isinstance(w, bool) and w >= 1 for w in widths):
            raise HyperparameterError(f"widths must be two or more whole numbers, at least 1, given {self.widths!r}")

    @property
    def layers(self) -> tuple[tuple[str, str], ...]:
        """Names of each layer's weight, of shape (inputs, outputs), and bias."""
        return tuple((f"layer{i}.weight", f"layer{i}.bias") for i in range(1, len(self.widths)))

    def init(self, seed: int = 0, dtype: DTypeLike = np.float32, backend: str = "auto") -> FlatParams:
        """Draw weights for ReLU (He et al., arXiv:1502.01852: variance 2 / inputs); biases start at zero.

        They are the same on every backend; on one for a GPU, the arrays of all that follows are CuPy's.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for (weight, bias), (inputs, outputs) in zip(self.layers, pairwise(self.widths), strict=True):
            shapes[weight], shapes[bias] = (inputs, outputs), (outputs,)
        params = FlatParams(shapes, dtype, backend)
        rng = np.random.default_rng(seed)
        for weight, _ in self.layers:
            inputs = params[weight].shape[0]
            params[weight] = rng.standard_normal(params[weight].shape) * np.sqrt(2 / inputs)
        return params

    def logits(self, params: FlatParams, x: Any) -> Any:
        """Give the last layer's outputs, of shape (samples, classes)."""
        return self._forward(params, x)[-1]

    def predict(self, params: FlatParams, x: Any) -> Any:
        """Give the most probable class of each sample."""
        return self.logits(params, x).argmax(axis=1)

    def accuracy(self, params: FlatParams, x: Any, y: Any) -> float:
        """Give the share of samples whose class is predicted, 0 to 1."""
        return float((self.predict(params, x) == y).mean())

    def loss_and_grad(self, params: FlatParams, x: Any, y: Any) -> float:
        """Give the mean cross-entropy of a batch, in nats, and fill ``params.grad``.

        Parameters
        ----------
        params : FlatParams
            Of `init`.
        x : array of shape (samples, features)
            Inputs.
        y : array of shape (samples,)
            Classes, from 0.

        Raises
        ------
        ArrayError
            For inputs of another shape, and for what is no class.
        """
        outputs = self._forward(params, x)
        xp = namespace(params.flat)
        y = xp.asarray(y)
        if y.shape != (len(x),) or y.dtype.kind not in "iu":
            raise ArrayError(f"y must be whole numbers of shape ({len(x)},), given {y.dtype} of shape {y.shape}")
        if len(y) and not (y.min() >= 0 and y.max() < self.widths[-1]):
            raise ArrayError(f"y must be classes from 0 to {self.widths[-1] - 1}, given {y.min()} to {y.max()}")
        z = outputs[-1] - outputs[-1].max(axis=1, keepdims=True)
        log_sum = xp.log(xp.exp(z).sum(axis=1, keepdims=True))
        rows = xp.arange(len(x))
        loss = float((log_sum[:, 0] - z[rows, y]).mean(dtype=np.float64))
        delta = xp.exp(z - log_sum)
        delta[rows, y] -= 1
        delta /= len(x)
        for k in range(len(self.layers) - 1, -1, -1):
            weight, bias = self.layers[k]
            xp.matmul(outputs[k].T, delta, out=params.grad[weight])
            xp.sum(delta, axis=0, out=params.grad[bias])
            if k:
                delta = (delta @ params[weight].T) * (outputs[k] > 0)
        return loss

    def _forward(self, params: FlatParams, x: Any) -> list[Any]:
        """Input and output of every layer."""
        if x.ndim != 2 or x.shape[1] != self.widths[0]:
            raise ArrayError(f"x must have shape (samples, {self.widths[0]}), given {x.shape}")
        xp = namespace(params.flat)
        outputs = [xp.asarray(x, params.dtype)]
        for weight, bias in self.layers:
            if len(outputs) > 1:
                xp.maximum(outputs[-1], 0, out=outputs[-1])
            outputs.append(outputs[-1] @ params[weight] + params[bias])
        return outputs
