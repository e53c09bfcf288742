"""What the observer measures, and which round it lets a report quote."""

import numpy as np
import torch

from codream_secure.data.examples import Examples
from codream_secure.federation.observer import Measurement, Observer


class Constant(torch.nn.Module):
    """Always predicts class 1; counts how often it saw training mode."""

    def forward(self, x):
        assert not self.training
        return torch.tensor([0.0, 1.0]).repeat(len(x), 1)


def examples(labels):
    return Examples(torch.zeros(len(labels), 1, 2, 2), torch.tensor(labels))


def test_a_measurement_holds_one_figure_a_client_and_their_mean_on_validation():
    observer = Observer(
        examples([1, 0]), {0: examples([1, 1]), 1: examples([0, 0])}, np.array([[1, 3], [4, 0]])
    )
    both = {0: Constant(), 1: Constant()}
    m = observer.measure(3, both, both, Constant())
    assert m == Measurement(
        round=3,
        clients=(0.5, 0.5),
        independent=(0.5, 0.5),
        personal=(0.75, 0.0),
        independent_personal=(0.75, 0.0),
        server=0.5,
        validation=0.5,
    )
    assert (m.clients_mean, m.clients_std, m.independent_mean) == (0.5, 0, 0.5)
    assert (m.personal_mean, m.independent_personal_mean) == (0.375, 0.375)


def reported(*validation, count=100):
    observer = Observer(examples([1]), {0: examples([1] * count)}, np.array([[0, count]]))
    observer.history = [
        Measurement(
            round=k,
            clients=(1 / k,),
            independent=(0.0,),
            personal=(1 / k,),
            independent_personal=(0.0,),
            server=0.0,
            validation=v,
        )
        for k, v in enumerate(validation, start=1)
    ]
    found = observer.reported()
    return found and found.round


def test_the_last_round_within_a_standard_error_of_the_best_is_reported():
    # The standard error of 0.9 over 100 examples is 0.03.
    assert reported(0.80, 0.90, 0.88) == 3
    assert reported(0.80, 0.90, 0.86) == 2
    assert reported(0.90, 0.90, 0.50) == 2
    assert reported(0.90, 0.88, count=10_000) == 1


def test_the_test_accuracy_plays_no_part():
    """It falls with the round in `reported`; the last of equals is chosen all the same."""
    assert reported(0.5, 0.5, 0.5) == 3


def test_without_validation_the_last_round_is_reported():
    assert reported(None, None) == 2
    assert reported() is None
