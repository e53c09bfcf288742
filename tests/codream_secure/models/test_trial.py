"""A user's model is tried as the run will use it: what would end the run is refused before."""

import copy

import pytest
import torch
from torch import nn

from codream_secure.data import InputSpec
from codream_secure.errors import UserError
from codream_secure.models.layers import takes_channels_last
from codream_secure.models.trial import trains_on_one, try_model

SPEC = InputSpec(1, 8, 8, 10)


class _Model(nn.Module):
    """A convolution, flattened by the subclass's own method, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.last = nn.Linear(256, 10)

    def features(self, x):
        return self.first(x).flatten(1)

    def forward(self, x):
        return self.last(self.features(x))


class Views(_Model):
    def features(self, x):
        h = self.first(x)
        return h.view(h.size(0), -1)


class ViewsInside(_Model):
    """Sibling: rows of all channels as a sequence, as before an LSTM."""

    def features(self, x):
        h = self.first(x)
        return h.view(len(h), 32, 8).tanh().flatten(1)


class TwoOutputs(_Model):
    def forward(self, x):
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


class NamedOutputs(_Model):
    """Sibling: as torchvision's segmentation models."""

    def forward(self, x):
        logits = super().forward(x)
        return {"out": logits} if self.training else logits


class Caches(_Model):
    def features(self, x):
        h = super().features(x)
        if self.training:
            self.seen = h
        return h


class CachesAll(_Model):
    """Sibling: in a list of a nested layer, put there by a hook."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(self.first)
        self.first[0].seen = {"all": []}
        self.first[0].register_forward_hook(_keep)


def _keep(layer, _, out):
    layer.seen["all"].append(out)


class Remembers(_Model):
    """Sibling: a state that is carried from batch to batch, with its graph."""

    memory = 0.0

    def features(self, x):
        h = super().features(x)
        if self.training:
            h = h + self.memory
            self.memory = h.mean() * 0.5
        return h


class ExtraState(_Model):
    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        pass


class ForgetsScale(_Model):
    """Sibling: a number that moves in training and is in no state."""

    scale = 1.0

    def forward(self, x):
        if self.training:
            self.scale *= 1.5
        return super().forward(x) * self.scale


class SparseTable(_Model):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 256, sparse=True)

    def features(self, x):
        return super().features(x) + self.table(torch.zeros(len(x), dtype=torch.int64))


class Tied(_Model):
    def __init__(self):
        super().__init__()
        self.again = nn.Linear(256, 256)
        self.other = nn.Linear(256, 256)
        self.other.weight = self.again.weight

    def features(self, x):
        return self.other(self.again(super().features(x)))


class Overlaps(_Model):
    """Sibling: one buffer is a part of another."""

    def __init__(self):
        super().__init__()
        self.register_buffer("ones", torch.ones(256))
        self.register_buffer("also", self.ones[:3])

    def features(self, x):
        return super().features(x) * self.ones


class Expands(Overlaps):
    """Sibling: a buffer that cannot be written to."""

    def __init__(self):
        super().__init__()
        self.ones = torch.ones(1).expand(256)


class Normalizes(_Model):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(256)

    def features(self, x):
        return self.norm(super().features(x))


@pytest.mark.parametrize("model", [Views, ViewsInside])
def test_a_view_keeps_its_model_in_the_usual_layout(model):
    made = model()
    try_model(made, SPEC)
    assert not takes_channels_last(made)
    strange = torch.randn(3, 8, 8, 1).permute(0, 3, 1, 2)
    for one in (made, copy.deepcopy(made)):
        assert one(strange).shape == (3, 10)


REFUSED = {
    TwoOutputs: "output is a tuple, not a tensor",
    NamedOutputs: "output is a dict, not a tensor",
    Caches: "in 'seen', so that it cannot be copied; store seen.detach",
    CachesAll: "layer 'first.0' keeps a tensor of its last batch in 'seen'",
    Remembers: "training step raised RuntimeError",
    ExtraState: "puts a dict into its state_dict",
    ForgetsScale: "logits change when its state is stored",
    Expands: "loading its state raised RuntimeError",
    SparseTable: "training step raised RuntimeError",
}


@pytest.mark.parametrize(("model", "reason"), REFUSED.items())
def test_what_would_end_the_run_is_refused(model, reason):
    with pytest.raises(UserError, match=reason):
        try_model(model(), SPEC)


@pytest.mark.parametrize("model", [Tied, Overlaps, Normalizes])
def test_what_can_work_passes_and_is_left_as_it_was(model):
    made = model()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    try_model(made, SPEC)
    assert takes_channels_last(made)
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())
    assert not made._forward_hooks
    assert not made._forward_pre_hooks


def test_the_layer_that_cannot_learn_from_one_image_is_named():
    assert "layer 'norm' raised ValueError" in trains_on_one(Normalizes(), SPEC)
    assert trains_on_one(Tied(), SPEC) is None


def test_bfloat16_is_tried_where_it_is_asked_for():
    class Transforms(_Model):
        def features(self, x):
            return torch.zeros(len(x), 256).index_add(0, torch.arange(len(x)), super().features(x))

    try_model(Transforms(), SPEC)
    with pytest.raises(UserError, match="raised"):
        try_model(Transforms(), SPEC, bf16=True)
