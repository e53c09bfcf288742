"""The server's half of a synthesis, with scripted sums in place of clients."""

import numpy as np
import pytest
import torch
from dream_settings import settings

from codream_secure.aggregation.aggregator import FieldSum
from codream_secure.aggregation.requests import DreamRequest, LocalSteps, pixels, student_logits
from codream_secure.aggregation.sections import sections
from codream_secure.data.pixels import PixelScale
from codream_secure.data.spec import InputSpec, Scaling
from codream_secure.dreaming.losses import class_mean_distance
from codream_secure.dreaming.server_terms import ClassMeans
from codream_secure.dreaming.sources import PixelDreams
from codream_secure.dreaming.synthesis import Clips, DreamSynthesis
from codream_secure.errors import StepAborted
from protocols.quantization import Quantizer

SPEC = InputSpec(1, 4, 4, 3)
SCALE = PixelScale(Scaling((0.5,), (0.5,)))


def start(dream_lr=0.2, optimizer="adam", student=None, released=None, **changes):
    noise = torch.Generator().manual_seed(0)
    images = torch.randn(5, 1, 4, 4, generator=noise)
    return DreamSynthesis(
        PixelDreams(images, SCALE, optimizer=optimizer, lr=dream_lr),
        SCALE,
        settings(**changes),
        clips=Clips(),
        noise=noise,
        position=(1, 0),
        student=student,
        released=released,
    )


class Scripted:
    """An aggregator whose clients all answer with one function of the request."""

    def __init__(self, answer, aborted=()):
        self.answer, self.aborted, self.requests = answer, aborted, []

    def sum(self, request):
        self.requests.append(request)
        if len(self.requests) - 1 in self.aborted:
            raise StepAborted("scripted")
        answer = self.answer(request)
        values = answer if isinstance(answer, dict) else {sections(request)[0].name: answer}
        totals = {
            section.name: 3
            * Quantizer(section.maximum, section.clip).encode(
                values[section.name],
                seed=bytes(32),
                step=len(self.requests),
                section=section.name,
            )
            for section in sections(request)
        }
        return FieldSum(totals, 3, sections(request))


def towards(target):
    return lambda request: (pixels(request) / 255.0 - target) * 4


def test_dreams_descend_along_the_summed_gradient():
    synthesis, clients = start(dream_lr=0.05), Scripted(towards(0.8))
    before = np.abs(pixels(synthesis.dream_request()) / 255 - 0.8).mean()
    for _ in range(60):
        assert synthesis.dream_step(clients)
    after = np.abs(pixels(synthesis.dream_request()) / 255 - 0.8).mean()
    assert after < 0.05 < before


def test_dreams_are_kept_near_released_class_means_and_nobody_is_asked_for_it():
    classes, means = torch.tensor([0, 0, 0, 1, 1]), torch.full((2, 1, 4, 4), -0.5)
    means[1] = 0.7
    requests = []
    for weight in (0.0, 100.0):
        released = ClassMeans(classes, means)
        synthesis = start(dream_lr=0.05, released=released, statistics_weight=weight)
        clients = Scripted(lambda request: np.zeros(request.shape))
        for _ in range(60):
            synthesis.dream_step(clients)
        requests.append(clients.requests)
        found = SCALE.from_pixels(pixels(synthesis.dream_request()))
        near = float(class_mean_distance(found, classes, means).sqrt())
        assert (near < 0.1) == bool(weight)
        spread = found[:3].std(dim=0).mean()  # of one class: only the mean is held
        assert spread > 0.3
    first, second = (sent[0] for sent in requests)
    assert first == second


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


@pytest.mark.parametrize("optimizer", ["adam", "fedadam", "avg"])
def test_every_server_optimizer_descends(optimizer):
    lr = {"adam": 0.05, "fedadam": 0.05, "avg": 1.0}[optimizer]
    synthesis, clients = start(lr, optimizer), Scripted(towards(0.8))
    before = np.abs(pixels(synthesis.dream_request()) / 255 - 0.8).mean()
    for _ in range(80):
        synthesis.dream_step(clients)
    after = np.abs(pixels(synthesis.dream_request()) / 255 - 0.8).mean()
    assert after < before / 3


def test_avg_moves_the_dreams_by_the_mean_of_the_clients_moves():
    local = LocalSteps(3, 0.02)
    synthesis = start(1.0, "avg", local=local, bits=16)
    before = synthesis._source.dreams().clone()
    move = torch.linspace(-0.01, 0.01, 80).reshape(5, 1, 4, 4)

    def moved(request):
        return -move.numpy() / (3 * 0.02 / request.clip)

    synthesis.dream_step(Scripted(moved))
    expected = (before + move).clamp(-1, 1)
    assert torch.allclose(synthesis._source.dreams(), expected, atol=1e-4)


def test_the_student_is_published_at_the_broadcast_and_finishes_the_chain_rule():
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
    student.requires_grad_(False)
    synthesis = start(1.0, "avg", student=student, bits=16, adversary_bits=16)
    towards = torch.linspace(-0.5, 0.5, 15).reshape(5, 3)
    seen = {}

    def answer(request):
        seen["logits"] = student_logits(request.student)
        seen["dreams"] = SCALE.from_pixels(pixels(request))
        seen["stride"] = request.local.size / request.clip
        return {"gradient": np.zeros(request.shape), "student": towards.numpy()}

    before = synthesis._source.dreams().clone()
    synthesis.dream_step(Scripted(answer))
    assert torch.allclose(torch.from_numpy(seen["logits"].copy()), student(seen["dreams"]))
    gradient = (towards @ student[1].weight).reshape(5, 1, 4, 4)
    expected = (before - seen["stride"] * gradient).clamp(-1, 1)
    assert torch.allclose(synthesis._source.dreams(), expected, atol=1e-3)


def test_each_section_has_a_clip_of_its_own():
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
    synthesis = start(student=student)
    clients = Scripted(
        lambda request: {
            "gradient": np.full(request.shape, 0.9),
            "student": np.full((5, 3), 0.001),
        }
    )
    synthesis.dream_step(clients)
    request = synthesis.dream_request()
    assert request.clip > 1
    assert request.student.clip == 0.5
