"""FedAvg's mean as integers."""

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord

from codream_secure.flower.mean import client_inputs, new_arrays, sent_arrays
from codream_secure.flower.mean_request import MeanRequest
from codream_secure.sites import wire
from protocols.server.step import Finished


def test_the_error_of_a_mean_is_within_the_stated_variance():
    """1000 numbers of 5 clients with 4 bits: zero mean, and no more variance than promised."""
    start = ArrayRecord({"w": Array(np.zeros(1000, np.float64))})
    request = MeanRequest(
        version=wire.VERSION, step=3, evaluate=False, keys=("arrays", "config", "num-examples"),
        arrays=sent_arrays(start), config={}, run_config={}, bits=4, clip=1.0, weight_cap=10,
    )  # fmt: skip
    draw = np.random.default_rng(0)
    total, exact, weights = np.zeros(1000, np.int64), np.zeros(1000), (10, 10, 5, 5, 1)
    for client, weight in enumerate(weights):
        new = draw.uniform(-0.9, 0.9, 1000)
        arrays = ArrayRecord({"w": Array(new)})
        metrics = MetricRecord({"num-examples": weight})
        inputs, *_ = client_inputs(request, arrays, metrics, bytes([client]) * 32)
        total += inputs["update"].astype(np.int64)
        exact += weight * new / sum(weights)
    finished = Finished({"update": total.astype(np.uint32)}, tuple(range(5)))
    error = new_arrays(request, finished, np.mean(weights))["w"].numpy() - exact
    bound = 5 * 10**2 / (15**2 * sum(weights) ** 2)
    assert 0.3 * bound < error.var() < bound
    assert abs(error.mean()) < 4 * (bound / 1000) ** 0.5


def test_a_model_that_only_weight_decay_moves_tells_the_sum_of_weights():
    """What SECURITY.md says remains: every client's change is known, so its weight is what is left.

    The server sends ones to a network that is dead; training with weight decay 0.01 and learning
    rate 1 makes 0.99 of them, whatever the data are.
    """
    weights, size = (30, 400, 77, 900, 5), 4000
    start = ArrayRecord({"w": Array(np.ones(size))})
    request = MeanRequest(
        version=wire.VERSION, step=3, evaluate=False, keys=("arrays", "config", "num-examples"),
        arrays=sent_arrays(start), config={}, run_config={}, bits=20, clip=1.0, weight_cap=1000,
    )  # fmt: skip
    total = np.zeros(size, np.int64)
    for client, weight in enumerate(weights):
        arrays = ArrayRecord({"w": Array(np.full(size, 0.99))})
        metrics = MetricRecord({"num-examples": weight})
        inputs, *_ = client_inputs(request, arrays, metrics, bytes([client]) * 32)
        total += inputs["update"].astype(np.int64)
    mean = request.quantizer.decode_sum(total, len(weights)).mean()
    read = -mean / 0.01 * request.weight_cap
    assert abs(read - sum(weights)) < 1
