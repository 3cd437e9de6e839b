from __future__ import annotations

import fake_cupy
import gxx
import numpy as np
import pytest

import fastgd
from fastgd.kernels.errors import ArrayError, HyperparameterError


@pytest.mark.parametrize("widths", [(3, 4), (3, 5, 4), (3, 7, 5, 2)])
def test_gradient_by_central_differences(widths):
    rng = np.random.default_rng(0)
    net = fastgd.nn.MLP(widths)
    params = net.init(1, np.float64)
    for _, bias in net.layers:
        params[bias] = 0.1 * rng.standard_normal(params[bias].shape)
    x, y = rng.standard_normal((6, widths[0])), rng.integers(0, widths[-1], 6)
    net.loss_and_grad(params, x, y)
    gradient = params.grad.flat.copy()
    for s in params.segments:
        for i in range(s.offset, s.offset + s.size):
            kept = params.flat[i]
            values = []
            for h in (1e-6, -1e-6):
                params.flat[i] = kept + h
                values.append(net.loss_and_grad(params, x, y))
            params.flat[i] = kept
            assert (values[0] - values[1]) / 2e-6 == pytest.approx(gradient[i], abs=1e-8)


def test_large_logits_stay_finite():
    net = fastgd.nn.MLP((2, 2))
    params = net.init(0)
    params["layer1.weight"] = [[1e4, -1e4], [0, 0]]
    loss = net.loss_and_grad(params, np.float32([[1, 0], [-1, 0]]), np.array([0, 0]))
    assert loss == pytest.approx(1e4, rel=1e-5)
    assert np.isfinite(params.grad.flat).all()


def test_same_seed_same_weights():
    net = fastgd.nn.MLP((50, 40, 10))
    a, b, c = net.init(3), net.init(3), net.init(4)
    assert np.array_equal(a.flat, b.flat)
    assert not np.array_equal(a.flat, c.flat)
    assert a.dtype == np.float32
    assert a["layer1.weight"].std() == pytest.approx(np.sqrt(2 / 50), rel=0.1)
    assert not a["layer2.bias"].any()


def test_bad_input_is_named():
    for widths in ((3,), (3, 0), (3, 2.5), (3, True)):
        with pytest.raises(HyperparameterError, match="widths"):
            fastgd.nn.MLP(widths)
    net = fastgd.nn.MLP((3, 2))
    with pytest.raises(ArrayError, match=r"\(samples, 3\), given \(4, 2\)"):
        net.predict(net.init(), np.zeros((4, 2)))
    x, y = np.zeros((4, 3)), np.array([0, 1, 1, 0])
    for wrong, message in (
        (y[:, None], r"\(4,\), given int64 of shape \(4, 1\)"),  # would broadcast to 4 x 4, without an error
        (-y, "0 to 1, given -1 to 0"),  # would count from the end
        (y + 1, "given 1 to 2"),
        (y * 1.0, "given float64"),
    ):
        with pytest.raises(ArrayError, match=message):
            net.loss_and_grad(net.init(), x, wrong)


@pytest.mark.skipif(gxx.GXX is None, reason="needs g++")
def test_a_network_trains_on_a_gpu_as_on_the_host(monkeypatch):
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((60, 3)).astype(np.float32), rng.integers(0, 2, 60)
    net = fastgd.nn.MLP((3, 8, 2))

    def train(backend, as_array):
        params = net.init(0, backend=backend)
        opt = fastgd.AdamW(params, lr=0.05, max_norm=1.0)
        data = as_array(x), as_array(y)
        history = fastgd.fit(net.loss_and_grad, opt, data, batch_size=16, epochs=3, validation=data)
        return [*history.loss, *history.val_loss, net.accuracy(params, *data)]

    expected = train("numpy", np.asarray)
    with fake_cupy.installed(monkeypatch) as cupy:
        assert train("cupy", cupy.asarray) == pytest.approx(expected, rel=1e-6)
