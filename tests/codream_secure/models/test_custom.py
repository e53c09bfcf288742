"""Architectures of one's own: `module:function`."""

import sys

import pytest
import torch
from torch import nn

from codream_secure.data import InputSpec
from codream_secure.errors import UserError
from codream_secure.federation.simulation import Simulation
from codream_secure.models.build import build_model
from codream_secure.models.custom import listed

SPEC = InputSpec(1, 8, 8, 10)

MODULE = """
import torch
from torch import nn

class Wrapped(nn.Module):
    def __init__(self, function, inputs=64, outputs=10):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        self.function = function

    def forward(self, x):
        return self.function(self.layer, x.flatten(1))

def good(spec):
    return nn.Sequential(
        nn.Conv2d(spec.channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(),
        nn.LazyLinear(spec.classes),
    )

def private(spec):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, spec.classes))

ONE = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
constant = 3

def always_the_same(spec): return ONE
def no_module(spec): return "model"
def raises(spec): raise ValueError("two\\nlines")
def no_arguments(): return ONE
def eleven(spec): return Wrapped(lambda layer, x: layer(x), outputs=11)
def three_axes(spec): return Wrapped(lambda layer, x: layer(x)[None])
def a_pair(spec): return Wrapped(lambda layer, x: (layer(x), x))
def wrong_input(spec): return Wrapped(lambda layer, x: layer(x), inputs=63)
def double(spec): return Wrapped(lambda layer, x: layer(x).double())
def cut(spec): return Wrapped(lambda layer, x: layer(x.detach()))
def detached(spec): return Wrapped(lambda layer, x: layer(x).detach())
def frozen(spec): return private(spec).requires_grad_(False)
def empty(spec): return nn.Sequential(nn.Flatten())
def elsewhere(spec): return private(spec).to("meta")
def in_place(spec): return nn.Sequential(
    nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 10))
def mixing(spec): return Wrapped(lambda layer, x: layer(x - x.mean(0)))
def unused(spec):
    model = Wrapped(lambda layer, x: layer(x))
    model.other = nn.Linear(3, 3)
    return model
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder holds modules, and no test sees those of another."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "needy.py").write_text("import no_such_library\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/inner.py").write_text("from mine import private\n")
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in ("mine", "broken", "needy", "package", "package.inner"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["mine:good", "mine:private", "package.inner:private"])
def test_a_function_of_a_module_in_the_current_folder_makes_the_model(name):
    first, again, other = (build_model(name, SPEC, seed=seed) for seed in (1, 1, 2))
    assert first.training
    assert first(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    vectors = [nn.utils.parameters_to_vector(m.parameters()) for m in (first, again, other)]
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])


def test_trying_the_model_moves_no_running_statistics():
    norm = build_model("mine:good", SPEC, seed=0)[1]
    assert norm.running_mean.abs().sum() == 0
    assert norm.num_batches_tracked == 0


def test_everybody_gets_a_model_of_their_own():
    first, second = (build_model("mine:always_the_same", SPEC, seed=seed) for seed in (1, 2))
    with torch.no_grad():
        first[1].bias += 1
    assert not torch.equal(first[1].bias, second[1].bias)


BAD = {
    "nowhere:make": "no module nowhere; install it or put it into the current folder",
    "package.nowhere:make": "no module package.nowhere",
    "mine:nothing": "module mine has no function nothing",
    "mine:constant": "module mine has no function constant",
    "mine:": "write it as my_module:my_function",
    ":make": "write it as my_module:my_function",
    "broken:make": "raised ZeroDivisionError: division by zero",
    "needy:make": "raised ModuleNotFoundError: No module named 'no_such_library'",
    "mine:raises": "raised ValueError: two lines",
    "mine:no_arguments": "raised TypeError",
    "mine:no_module": "must return a torch.nn.Module, not str",
    "mine:eleven": "shape (2, 11), not (2, 10); 10 is the number of classes",
    "mine:three_axes": "shape (1, 2, 10), not (2, 10)",
    "mine:a_pair": "must be a tensor of logits, not tuple",
    "mine:wrong_input": "mat1 and mat2 shapes cannot be multiplied",
    "mine:double": "must be float32, not torch.float64",
    "mine:cut": "does not depend on the image",
    "mine:detached": "has no gradient",
    "mine:frozen": "no parameters to train",
    "mine:empty": "no parameters to train",
    "mine:elsewhere": "parameter 1.weight is on meta; leave it on the CPU",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_one_line_that_names_the_model(name):
    with pytest.raises(UserError) as caught:
        build_model(name, SPEC, seed=0)
    text = str(caught.value)
    assert text.startswith(f"model {name}")
    assert BAD[name] in text
    assert "\n" not in text


def test_one_s_own_has_no_width():
    with pytest.raises(UserError, match="mine:private has no width"):
        build_model("mine:private", SPEC, width=4, seed=0)


@pytest.mark.parametrize("options", [{}, {"dp_eps": 8.0, "dp_steps": 2}], ids=["plain", "dp"])
def test_lists_may_mix_architectures(tiny, options):
    name = "mine:private" if options else "mine:good"
    simulation = Simulation(tiny(models=f"linear, {name}", **options))
    assert simulation.federation.model_names == ("linear", name) * 2
    (measurement,) = simulation.rounds()
    assert len(measurement.clients) == 4


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("good", "layer '1' keeps batch statistics"),
        ("in_place", "layer '1' changes a layer's output in place"),
        ("mixing", "one example's logits depend on another example"),
        ("unused", "parameter other.weight gets no gradient for each example"),
    ],
)
def test_what_dp_cannot_train_is_refused_before_the_run(tiny, name, says):
    with pytest.raises(UserError) as caught:
        Simulation(tiny(models=f"mine:{name}", dp_eps=8.0, dp_steps=2))
    assert str(caught.value).startswith(f"model mine:{name}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("random", "def model(spec): ...", "name of another module; rename"),
        ("leaves", "import sys; sys.exit(1)", "raised SystemExit"),
    ],
)
def test_a_module_that_is_another_one_or_ends_the_program(tmp_path, monkeypatch, name, text, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(UserError, match=says):
        build_model(f"{name}:model", InputSpec(1, 8, 8, 10), seed=0)


def test_one_model_needs_no_list():
    net = nn.Linear(2, 2)
    for one in (net, nn.Linear, "mlp"):
        assert listed(one) == (one,)
    assert listed("mlp, lenet5") == ("mlp", "lenet5")
    assert listed([net, "mlp"]) == (net, "mlp")
    assert listed(None) == ()
