from __future__ import annotations

import numpy as np
import pytest

from dphpc.core.errors import InputError
from dphpc.model.dp_model import DPModel
from dphpc.train.initial import initial_model, model_arrays, set_model_arrays
from dphpc.train.schema import parse_input
from dphpc.train.statistics import Statistics
from tests.train.systems import small_input


def model(seed: int | None = 1, run_seed: int = 0, **descriptor: object) -> DPModel:
    given = small_input()
    given["model"]["descriptor"] |= {"sel": [20, 20], "neuron": [25, 50, 100], "seed": seed, **descriptor}
    given["model"]["fitting_net"] |= {"neuron": [60, 60], "seed": seed}
    statistics = Statistics(np.array([0.1, 0.2]), np.full((2, 2), 1 / 3), np.array([-3.0, -1.0]))
    return initial_model(parse_input(given).model, statistics, run_seed)


def test_weights_are_drawn_as_deepmd_kit_draws_them() -> None:
    networks = model(resnet_dt=True).fitting.networks + model(resnet_dt=True).descriptor.networks
    for net in networks:
        for layer in net.layers:
            n_in, n_out = layer.w.shape
            if layer.w.size > 1000:
                assert layer.w.std() == pytest.approx(1 / np.sqrt(n_in + n_out), rel=0.1)
            assert layer.b is not None
    biases = np.concatenate([layer.b for net in networks for layer in net.layers if layer.b is not None])
    assert abs(biases.mean()) < 0.15
    assert biases.std() == pytest.approx(1.0, rel=0.1)
    steps = np.concatenate([layer.idt for net in networks for layer in net.layers if layer.idt is not None])
    assert steps.mean() == pytest.approx(0.1, abs=2e-4)
    assert steps.std() == pytest.approx(1e-3, rel=0.2)
    assert networks[0].layers[0].idt is None  # only beside a skip connection
    assert networks[-1].layers[1].idt is not None
    assert networks[0].layers[-1].idt is None


def test_the_seed_decides_the_weights() -> None:
    first = model(seed=1).descriptor.networks
    assert np.array_equal(first[0].layers[0].w, model(seed=1, run_seed=5).descriptor.networks[0].layers[0].w)
    assert not np.array_equal(first[0].layers[0].w, first[1].layers[0].w)
    assert not np.array_equal(first[0].layers[0].w, model(seed=2).descriptor.networks[0].layers[0].w)
    unseeded = [model(seed=None, run_seed=s).descriptor.networks[0].layers[0].w for s in (1, 1, 2)]
    assert np.array_equal(unseeded[0], unseeded[1])
    assert not np.array_equal(unseeded[0], unseeded[2])


def test_statistics_are_kept_as_the_file_keeps_them() -> None:
    assert model().descriptor.dstd[0, 0] == 1 / 3
    single = model(precision="float32")
    assert single.descriptor.dstd[0, 0] == np.float32(1 / 3)
    assert single.descriptor.dstd.dtype == np.float64
    assert single.descriptor.networks[0].layers[0].w.dtype == np.float32
    assert single.fitting.networks[0].layers[0].w.dtype == np.float64
    assert np.array_equal(single.out_bias, [-3.0, -1.0])


def test_arrays_of_another_model_are_refused() -> None:
    own, other = model(), model_arrays(model(neuron=[25, 50, 90]))
    with pytest.raises(InputError, match="shape"):
        set_model_arrays(own, other, "other.dp")
    del other["out_bias"]
    with pytest.raises(InputError, match=r"other\.dp"):
        set_model_arrays(own, other, "other.dp")
