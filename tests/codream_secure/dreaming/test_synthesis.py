"""The server's half of a synthesis, with scripted sums in place of clients."""

import numpy as np
import pytest
import torch

from codream_secure.aggregation import FieldSum
from codream_secure.data.spec import InputSpec, Scaling
from codream_secure.dreaming.pixels import PixelScale
from codream_secure.dreaming.synthesis import ClipState, DreamSynthesis, SynthesisSettings
from codream_secure.errors import StepAborted
from codream_secure.messages import DreamRequest, pixels, sections
from protocols.quantization import Quantizer

SPEC = InputSpec(1, 4, 4, 3)
SCALE = PixelScale(Scaling((0.5,), (0.5,)))


def settings(**changes):
    values = {
        "dreams": 5,
        "dream_steps": 2,
        "dream_lr": 0.2,
        "bits": 8,
        "entropy_weight": 1.0,
        "bn_weight": 0.0,
        "balance_weight": 1.0,
        "tv_weight": 0.0,
        "l2_weight": 0.0,
        "labels": "probabilities",
        "label_bits": 12,
        "label_clip": 20.0,
        "kd_temperature": 4.0,
    }
    return SynthesisSettings(**(values | changes))


def start(**changes):
    return DreamSynthesis(
        SPEC,
        SCALE,
        settings(**changes),
        clip=ClipState(),
        noise=torch.Generator().manual_seed(0),
        position=(1, 0),
    )


class Scripted:
    """An aggregator whose clients all answer with one function of the request."""

    def __init__(self, answer, aborted=()):
        self.answer, self.aborted, self.requests = answer, aborted, []

    def sum(self, request):
        self.requests.append(request)
        if len(self.requests) - 1 in self.aborted:
            raise StepAborted("scripted")
        (section,) = sections(request)
        codes = Quantizer(section.bits, section.clip).encode(
            self.answer(request), seed=bytes(32), step=len(self.requests), section=section.name
        )
        return FieldSum({section.name: 3 * codes}, 3, (section,))


def towards(target):
    return lambda request: (pixels(request) / 255.0 - target) * 4


def test_dreams_descend_along_the_summed_gradient():
    synthesis, clients = start(dream_lr=0.05), Scripted(towards(0.8))
    before = np.abs(pixels(synthesis.dream_request()) / 255 - 0.8).mean()
    for _ in range(60):
        assert synthesis.dream_step(clients)
    after = np.abs(pixels(synthesis.dream_request()) / 255 - 0.8).mean()
    assert after < 0.05 < before


def test_dreams_stay_within_the_range_of_pixels():
    synthesis, clients = start(dream_lr=5.0), Scripted(towards(50.0))
    for _ in range(3):
        synthesis.dream_step(clients)
    assert (pixels(synthesis.dream_request()) == 255).all()


def test_the_clip_of_a_request_follows_from_the_last_sum():
    synthesis, clients = start(), Scripted(lambda request: np.full(request.shape, 0.01))
    synthesis.dream_step(clients)
    assert synthesis.dream_request().clip == clients.requests[0].clip / 2


def test_after_an_aborted_step_the_next_broadcast_differs():
    synthesis, clients = start(), Scripted(towards(0.5), aborted={0})
    assert not synthesis.dream_step(clients)
    assert synthesis.dream_step(clients)
    first, second = clients.requests
    assert first.dreams != second.dreams
    assert first.clip == second.clip


def test_an_aborted_label_step_is_tried_again_on_dreams_that_moved_on():
    synthesis = start()
    clients = Scripted(
        lambda request: (
            towards(0.5)(request)
            if isinstance(request, DreamRequest)
            else np.zeros((len(pixels(request)), SPEC.classes))
        ),
        aborted={0},
    )
    labelled = synthesis.label(clients)
    assert [type(r).__name__ for r in clients.requests] == [
        "LabelRequest",
        "DreamRequest",
        "LabelRequest",
    ]
    assert (labelled.pixels == pixels(clients.requests[-1])).all()
    assert labelled.targets.sum(1).numpy() == pytest.approx(np.ones(5))


def test_labels_are_given_up_after_a_bounded_number_of_aborted_steps():
    clients = Scripted(towards(0.5), aborted=set(range(100)))
    assert start().label(clients) is None
    assert len(clients.requests) < 10


def test_priors_are_the_servers_and_ask_no_client():
    smooth, rough = start(tv_weight=50.0), start()
    nothing = Scripted(lambda request: np.zeros(request.shape))
    for _ in range(20):
        smooth.dream_step(nothing)
        rough.dream_step(nothing)

    def roughness(synthesis):
        return np.abs(np.diff(pixels(synthesis.dream_request()).astype(int), axis=-1)).mean()

    assert roughness(smooth) < 0.7 * roughness(rough)


def test_pixels_are_rounded_without_bias():
    scaled = torch.full((1, 1, 200, 200), 0.1234)
    rounded = SCALE.to_pixels(scaled, torch.Generator().manual_seed(1))
    assert rounded.mean() == pytest.approx((0.1234 * 0.5 + 0.5) * 255, abs=0.02)
    assert set(np.unique(rounded)) == {143, 144}
