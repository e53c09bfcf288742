"""`codream-secure privacy`: its figures are those of the accountants and of runs."""

import json

import pytest
from opacus.accountants import PRVAccountant
from opacus.accountants import RDPAccountant as OpacusRdp
from run_folders import summary_of

from codream_secure.privacy.forecast import predict
from codream_secure.runs.formats import pretty


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("q", "noise", "steps"), [(1.0, 3.8, 40), (0.1, 2.0, 200), (0.3, 1.5, 30)])
def test_epsilon_agrees_with_opacus_to_a_percent(run, q, noise, steps):
    arguments = ("--noise-multiplier", noise, "--sampling-rate", q, "--steps", steps, "--json")
    code, out, _ = run("privacy", "epsilon", *arguments)
    assert code == 0
    found = json.loads(out)
    for name, accountant in (("epsilon", PRVAccountant()), ("rdp_epsilon", OpacusRdp())):
        accountant.history = [(noise, q, steps)]
        assert found[name] == pytest.approx(accountant.get_epsilon(1e-5), rel=0.012)
    assert found["epsilon"] <= found["rdp_epsilon"]


def test_noise_and_epsilon_are_each_other_s_inverse(run):
    _, out, _ = run("privacy", "noise", "--eps", 4, "--steps", 25, "--sampling-rate", 0.5, "--json")
    noise = json.loads(out)["noise_multiplier"]
    _, out, _ = run(
        *("privacy", "epsilon", "--noise-multiplier", noise, "--steps", 25),
        *("--sampling-rate", 0.5, "--json"),
    )
    assert 3.96 < json.loads(out)["epsilon"] <= 4


def test_a_run_s_epsilon_is_found_again_from_what_it_released(run):
    tiny = ("--clients", 4, "--rounds", 1, "--models", "mlp", "--dreams", 4, "--dream-steps", 1)
    tiny += ("--method", "codream")
    code, out, err = run("simulate", *tiny, "--dp-eps", 8, "--dp-steps", 3, "--json", "--out", "a")
    assert code == 0, err
    reported = json.loads(out)["privacy"]
    code, out, _ = run("privacy", "epsilon", "a", "--json")
    found = json.loads(out)
    assert found["epsilon"] == reported["epsilon"]
    assert [r["name"] for r in found["releases"]] == ["local training", "class means"]
    code, out, _ = run("privacy", "epsilon", "a")
    assert code == 0
    for shown in (
        "local training",
        "discrete Gaussian",
        "5 together",
        "add or remove one training example",
    ):
        assert shown in out


# Predicted elsewhere (analytic Gaussian, epsilon 8, delta 1e-5): numbers in a release, clients,
# signal over noise, clients for a cosine of 0.9.
@pytest.mark.parametrize(
    ("dimensions", "clients", "ratio", "for_cosine"),
    [(3072, 10, 0.30, 68), (196_608, 100, 0.38, 548), (5130, 1000, 23, 88)],
)
def test_the_outlook_is_the_known_one(dimensions, clients, ratio, for_cosine):
    def forecast(contributions):
        return predict(
            "client",
            contributions=contributions,
            clients=clients,
            dimensions=dimensions,
            releases=100,
            epsilon=8.0,
            delta=1e-5,
        )

    found = forecast(clients)
    assert found.ratio == pytest.approx(ratio, rel=0.03)
    assert found.ratio_each == pytest.approx(found.ratio / 10)
    assert forecast(for_cosine).cosine == pytest.approx(0.9, abs=0.005)
    assert forecast(found.needed - 1).ratio < 1 <= forecast(found.needed).ratio


def test_the_plan_is_printed_for_both_units(run):
    arguments = ("privacy", "plan", "--clients", 10, "--examples", 1400, "--dims", 650)
    code, out, _ = run(*arguments)
    assert code == 0
    assert "client" in out
    assert "1,400" in out
    _, out, _ = run(*arguments, "--json")
    client, example = json.loads(out)
    assert example["ratio"] == pytest.approx(140 * client["ratio"])
    assert client["bits"] <= example["bits"] <= 32


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["epsilon"], "give RUN_DIR, or --noise-multiplier"),
        (["epsilon", "nothing-here"], "is not the folder of a finished run"),
        (["epsilon", "x", "--steps", 3], "not both"),
        (["epsilon", "--noise-multiplier", 0, "--steps", 3], "must be from 0.01 to 1000000"),
        (["epsilon", "--noise-multiplier", 1, "--steps", 0], "must be from 1 to 10000000"),
        (["noise", "--eps", -1, "--steps", 3], "must be from 0.000001 to 1000"),
        (["noise", "--eps", 1, "--steps", 3, "--delta", 1], "must be above 0 and below 1"),
        (["plan", "--clients", 2, "--dims", 5], "must be from 3 to 16384"),
        (["plan", "--clients", 5, "--dims", 5, "--agreement", 0], "must be above 0 and at most 1"),
    ],
)
def test_bad_input_is_one_line(run, arguments, says):
    code, out, err = run("privacy", *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_a_run_without_dp_has_no_epsilon(run, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "summary.json").write_text(pretty(summary_of()))
    code, _, err = run("privacy", "epsilon", "a")
    assert code == 2
    assert "no differential privacy" in err
