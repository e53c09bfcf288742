"""The privacy audit finds nothing in what is right, and every fault that is planted."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from codream_secure.audit import everything, membership
from codream_secure.audit.bounds import clopper_pearson, family_epsilon, one_run_epsilon
from codream_secure.audit.inversion import audit_inversion, resemblance
from codream_secure.audit.one_run import audit_one_run
from codream_secure.audit.sums import audit_sums, client_codes, masked_sum
from codream_secure.audit.training import SETTINGS, audit_steps
from codream_secure.data.datasets import load_dataset
from codream_secure.data.spec import InputSpec
from codream_secure.privacy.accounting import cost, training
from codream_secure.privacy.dpsgd import PrivateTrainer

FULL, SAMPLED, INTEGERS = SETTINGS
ZERO_KEY = bytes(32)


# Bounds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "trials"), [(0, 50), (3, 50), (50, 50)])
def test_the_interval_of_a_rate_is_scipys(hits, trials):
    expected = stats.binomtest(hits, trials).proportion_ci(0.999, "exact")
    assert clopper_pearson(hits, trials) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_the_family_bound_is_below_the_truth_and_comes_near_it(rate):
    draw = np.random.default_rng(3)
    without = 1.2 * draw.standard_normal(40_000)
    with_it = 1.2 * draw.standard_normal(40_000) + (draw.random(40_000) < rate)
    truth = cost([training(1.2, rate, 1)], 1e-5).epsilon
    found = family_epsilon(without, with_it, 1e-5, sampling_rate=rate)
    print(found, truth)
    assert 0.4 * truth < found <= truth


def test_one_run_bounds_are_those_of_the_theorem():
    # All of k guesses right bound epsilon by ln(p / (1 - p)), p = 0.05^(1 / k).
    p = 0.05 ** (1 / 300)
    assert one_run_epsilon(300, 300, 300, 0.0) == pytest.approx(np.log(p / (1 - p)), abs=1e-3)
    assert one_run_epsilon(100, 50, 300, 1e-5) == 0
    assert 0.2 < one_run_epsilon(100, 66, 300, 0.0) < 0.4
    assert one_run_epsilon(100, 66, 300, 1e-2) < one_run_epsilon(100, 66, 300, 0.0)


# Sums --------------------------------------------------------------------------------------------


def halved(terms, vector, key, client):
    noise = client_codes(terms, np.zeros_like(vector), key, client).astype(np.int64) - terms.offset
    return (client_codes(terms, vector, key, client) - noise // 2).astype(np.uint32)


def missing_share(terms, vector, key, client):
    if client != 1:
        return client_codes(terms, vector, key, client)
    return (vector.clip(-terms.cap, terms.cap) + terms.offset).astype(np.uint32)


def same_noise_everywhere(terms, vector, key, client):
    """Shares that are not independent: their sum is not what the ledger composes."""
    return client_codes(terms, vector, ZERO_KEY, client)


def wrapped(codes, terms, clients, threshold):
    """A modulus that is too small for the sum."""
    return masked_sum(codes, terms, clients, threshold) % (terms.maximum + 1)


@pytest.mark.parametrize("noise", ["skellam", "gaussian"])
def test_right_sums_hold_for_every_number_of_survivors(noise):
    found = audit_sums(noise, repeats=4)
    assert [one.survivors for one in found] == [3, 4, 5]
    assert all(one.holds for one in found)
    assert [one.claimed for one in found] == sorted((one.claimed for one in found), reverse=True)
    assert found[0].claimed == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("fault", [halved, missing_share, same_noise_everywhere])
def test_a_planted_fault_in_the_noise_of_sums_is_found(fault):
    assert not any(one.holds for one in audit_sums("skellam", repeats=4, codes=fault))


def test_a_planted_wrapped_modulus_is_found():
    assert not any(one.holds for one in audit_sums("skellam", repeats=2, total=wrapped))


def test_noise_that_is_off_is_proven_by_epsilon_too():
    def silent(terms, vector, _key, _client):
        return (vector.clip(-terms.cap, terms.cap) + terms.offset).astype(np.uint32)

    found = audit_sums("skellam", repeats=2, codes=silent)
    assert all(one.found > 10 for one in found)


# Steps -------------------------------------------------------------------------------------------


def planted(**changed):
    def make(model, **options):
        return PrivateTrainer(
            model,
            **{k: v(options) if callable(v := changed.get(k)) else options[k] for k in options},
        )

    return make


STEP_FAULTS = {
    "noise off": (FULL, planted(noise_multiplier=lambda _: 1e-6)),
    "sigma halved": (FULL, planted(noise_multiplier=lambda o: o["noise_multiplier"] / 2)),
    "sigma halved, integers": (
        INTEGERS,
        planted(noise_multiplier=lambda o: o["noise_multiplier"] / 2),
    ),
    # The same noise as before in real units, and a clip that no gradient reaches.
    "clip off": (
        FULL,
        planted(
            noise_multiplier=lambda o: o["noise_multiplier"] / 1e4, clip=lambda o: o["clip"] * 1e4
        ),
    ),
    "Poisson sampling off": (SAMPLED, planted(sampling_rate=lambda _: 1.0)),
}


def test_right_steps_hold():
    assert all(one.holds for one in audit_steps(trials=600))


@pytest.mark.parametrize("name", STEP_FAULTS)
def test_a_planted_fault_in_a_step_is_found(name):
    setting, make = STEP_FAULTS[name]
    (found,) = audit_steps(trials=2000, make=make, settings=[setting])
    assert not found.holds


# One run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    draw = torch.Generator().manual_seed(0)
    return torch.rand((200, 1, 8, 8), generator=draw), torch.arange(200) % 10


def test_one_run_holds_and_sees_something(digits):
    found = audit_one_run(*digits, 10, 8.0)
    assert found.holds
    assert found.found > 1


def test_one_run_finds_that_noise_is_off(digits):
    found = audit_one_run(*digits, 10, 2.0, make=planted(noise_multiplier=lambda _: 1e-6))
    assert not found.holds
    assert found.correct == found.guesses


# Membership --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gap", "low", "high"), [(0.0, 0.45, 0.55), (2.0, 0.85, 0.97)])
def test_lira_tells_members_as_well_as_they_differ(gap, low, high):
    draw = np.random.default_rng(1)
    members = (draw.random((8, 400)) < 0.5).astype(float)
    hardness = draw.normal(size=400)
    scores = hardness + draw.normal(size=(8, 400)) + gap * members
    found = membership._attacked("client model", scores, members)
    assert low < found.auc < high
    assert found.interval[0] < found.auc < found.interval[1]


def test_shadows_leave_out_half_of_every_client_and_are_kept(tiny, tmp_path, monkeypatch):
    data = load_dataset("digits", tmp_path)
    runs = []
    real = membership._shadow
    monkeypatch.setattr(membership, "_shadow", lambda *a: (runs.append(a[2]), real(*a))[1])
    config = tiny(samples_per_client=40)
    found = membership.audit_membership(config, data, 4, tmp_path / "kept")
    assert [one.victim for one in found] == list(membership.VICTIMS)
    assert all(one.guesses > 200 for one in found)
    assert runs == [0, 1, 2, 3]
    again = membership.audit_membership(config, data, 4, tmp_path / "kept")
    assert again == found
    assert len(runs) == 4
    with np.load(tmp_path / "kept/shadow-0.npz") as stored:
        assert 0.4 < stored["members"].mean() < 0.6
        assert np.isfinite(stored["client model"]).sum() == 160


# Inversion ---------------------------------------------------------------------------------------


def test_gradients_give_pictures_back_unless_there_is_noise():
    draw = torch.Generator().manual_seed(2)
    images = torch.rand((10, 1, 8, 8), generator=draw)
    found = audit_inversion(images, torch.arange(10), InputSpec(1, 8, 8, 10))
    assert [one.leaks for one in found] == [True, False, True, False]
    assert found[0].psnr > 40


def test_a_gradient_that_is_a_picture_is_recognised():
    draw = torch.Generator().manual_seed(3)
    seen, unseen = torch.rand((2, 20, 1, 8, 8), generator=draw)
    (copied,) = resemblance(-3 * seen[:5] + 7, seen, unseen)
    (unrelated,) = resemblance(torch.randn((5, 1, 8, 8), generator=draw), seen, unseen)
    assert copied.leaks
    assert not unrelated.leaks


# The command -------------------------------------------------------------------------------------


def test_the_command_says_what_it_found_and_keeps_it(run, tmp_path):
    code, out, _ = run("audit", "privacy", "--only", "one-run", "--json", "--out", "found")
    result = json.loads(out)
    assert code == 0
    assert result["violated"] == []
    assert [row["part"] for row in result["findings"]] == ["one-run"] * 3
    assert json.loads((tmp_path / "found/audit.json").read_text()) == result


def test_a_refuted_claim_ends_with_code_1(run, monkeypatch):
    fault = planted(noise_multiplier=lambda _: 1e-6)
    monkeypatch.setattr(everything, "audit_one_run", lambda *a: audit_one_run(*a, make=fault))
    code, out, _ = run("audit", "privacy", "--only", "one-run")
    assert code == 1
    assert "REFUTED" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere",), "is not the folder of a run"),
        (("nowhere", "--clients", "5"), "cannot be used with RUN_DIR"),
        (("--dp-eps", "-1"), "--dp-eps must be above 0"),
    ],
)
def test_bad_input_is_one_line(run, arguments, told):
    code, _, err = run("audit", "privacy", "--only", "sums", *arguments)
    assert code == 2
    assert told in err
    assert err.count("\n") == 1
