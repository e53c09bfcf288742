"""What the server does by itself: class means, which student it asks, distillation, its state."""

import pytest

from codream_secure.errors import StepAborted
from codream_secure.federation.simulation import Simulation

PRIVATE = {"models": "mlp", "dp_eps": 8.0, "dp_steps": 4, "validation": 0.0}


def no_images(*_):
    raise StepAborted("too few stayed")


def test_class_means_are_charged_before_they_are_asked_for(tiny, monkeypatch):
    simulation = Simulation(tiny(**PRIVATE))
    plan, charged = simulation.federation.plan.class_means_plan, []
    monkeypatch.setattr(
        simulation.aggregator, "sum", lambda _: charged.append(plan.charged) or no_images()
    )
    assert simulation.server.release_class_means() is None
    assert charged == [plan.charged] == [1]
    assert simulation.server.images is None


def test_dreams_and_student_start_from_class_means(tiny):
    simulation = Simulation(tiny(**PRIVATE))
    server = simulation.server
    before = [p.clone() for p in server.student.model.parameters()]
    answer = server.release_class_means()
    assert answer.count == 4
    assert all(group.images is server.images is not None for group in simulation.groups)
    now = server.student.model.parameters()
    assert any((b != p).any() for b, p in zip(before, now, strict=True))
    # Whoever has the sum computes the same means.
    other = Simulation(tiny(**PRIVATE)).server
    other.decode_class_means(answer.totals["statistics"], answer.count)
    assert (other.images.means == server.images.means).all()


def test_without_dp_no_class_means_are_asked_for(tiny):
    server = Simulation(tiny()).server
    assert server.class_mean_terms is None
    assert server.release_class_means() is None


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, [False, False, False]),
        ({"adaptive": "jsd", "adaptive_start": 2}, [False, True, True]),
    ],
    ids=["none", "adaptive"],
)
def test_the_student_is_asked_from_the_first_adaptive_round_on(tiny, options, asked):
    server = Simulation(tiny(**options)).server
    assert [server.asked_student(number) is not None for number in (1, 2, 3)] == asked


def test_the_student_learns_from_dreams_alone(tiny):
    simulation = Simulation(tiny())
    simulation.server.dream(1, lambda: None)
    simulation.server.distil(1)
    assert simulation.server.student.local_steps == 0
    assert simulation.server.student.work.trained > 0


def test_a_restored_server_goes_on_as_the_one_before(tiny):
    first, second = Simulation(tiny()).server, Simulation(tiny()).server
    first.dream(1, lambda: None)
    first.distil(1)
    second.restore(*first.state())
    for a, b in zip(first.groups, second.groups, strict=True):
        for one, other in zip(a.buffer.state(), b.buffer.state(), strict=True):
            assert all((x == y).all() for x, y in zip(one, other, strict=True))
    weights = second.student.model.state_dict()
    assert all((v == weights[k]).all() for k, v in first.student.model.state_dict().items())
