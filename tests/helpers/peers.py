"""What tests of methods for models of any architecture share: runs, and steps taken by hand.

`linear` models make a step a line of numpy: logits are x W' + b, and the gradient of a loss with
respect to W is G' x, where G is its gradient with respect to the logits.
"""

import itertools

import numpy as np
import torch

from codream_secure.baselines.base import BaselineSettings
from codream_secure.baselines.run import BaselineRun
from codream_secure.config.methods import parse_method
from codream_secure.models.tensors import tensors_of

# One step a round on all of a client's examples.
ONE_STEP = {"samples_per_client": 30, "batch": 1000}
SLOW_SGD = {"local_epochs": 1, "learning_rate": 0.1, "momentum": 0.0}


def build(tiny, name, options=None, **settings):
    """Return a run that has not begun."""
    return BaselineRun(tiny(**(options or {})), parse_method(name), BaselineSettings(**settings))


def after(run, rounds):
    """Return a run after so many rounds."""
    list(itertools.islice(run.rounds(), rounds))
    return run


def everything(run):
    """Return the numbers of all models of a run in one vector."""
    models = [*run.baseline.client_models().values()]
    if (server := run.baseline.server_model()) is not None:
        models.append(server)
    return torch.cat([v.flatten() for m in models for v in tensors_of(m).values()])


def assert_masks_change_nothing(tiny, family, options, **settings):
    """Two rounds with masks and without end in the same bits, and only the bytes differ."""
    runs = [
        after(build(tiny, f"{family}{way}-8bit", {"dropout": 0.1, **options}, **settings), 2)
        for way in ("", "-secure")
    ]
    assert torch.equal(*map(everything, runs))
    assert runs[1].ledger.per_client("up") > runs[0].ledger.per_client("up")
    assert [run.masked for run in runs] == [False, True]


def batch_of(run, client):
    """Return a client's examples as float64 rows and labels: its one minibatch, in any order."""
    data = run.federation.examples(client)
    return data.x.flatten(1).double().numpy(), data.y.numpy()


def linear_of(model):
    """Return weight and bias of the last layer, float64."""
    weight, bias = list(tensors_of(model).values())[-2:]
    return weight.double().numpy(), bias.double().numpy()


def softmax(logits):
    """Return probabilities, row by row."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def one_hot(labels, classes=10):
    """Return labels as rows of zeros and a one."""
    return np.eye(classes)[labels]


def stepped(weight, bias, x, gradient, rate):
    """Return weight and bias after a step of SGD, given the gradient of the logits."""
    return weight - rate * gradient.T @ x, bias - rate * gradient.sum(axis=0)
