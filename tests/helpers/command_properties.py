"""Draws command lines, settings files, datasets and models, and runs each in a fork of its own.

Every run must end in 0, 2 or 3 within limits of time and memory, without a traceback, and its
summary must hold what every summary holds.

    python tests/helpers/command_properties.py 200
"""

import json
import math
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import tomli_w
from crashes import call
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from codream_secure.config.settings import settings as options_of_runs

SECONDS, BYTES = 120, 6 << 30
_SAMPLE = 2  # so few examples are a sample for every run of the tests: no known ones beside them
BASE = {
    "clients": 3,
    "samples_per_client": 16,
    "rounds": 1,
    "dreams": 4,
    "dream_steps": 1,
    "kd_epochs": 1,
    "warmup_epochs": 1,
    "models": "linear",
    "seed": 0,
}
WRONG = ["", "x", "-1", "nan", "inf", "1e400", "10000000000000000000000000000", "0x10", "ε", "[b]"]
# Upper ends that a run of a second can have, where an option has none; None: the bound itself.
_LARGEST = {"width": 8, "latent": 8, "generator_width": 4, "key_steps": 64, "image_size": 12}
_WORDS = {
    "dataset": ["digits", "data.npz", "nowhere.npz", "pictures", ".", "", "a[b].npz"],
    "data_dir": ["data", "a[b]"],
    "partition": [
        "iid",
        "dirichlet:0.3",
        "dirichlet-labels:1",
        "shards:2",
        "shards:0",
        "dirichlet",
    ],
    "models": [
        *("auto", "linear", "mlp", "lenet5", "linear,mlp", "resnet8", "nothing", "linear,,mlp"),
        *(
            "mine:good",
            "mine:none",
            "mine:raises",
            "mine:wrong",
            "mine:flat",
            "mine:",
            ":",
            "json:loads",
        ),
    ],
    "device": ["cpu", "auto"],
}
MODELS = """
from torch import nn
def good(spec):
    pixels = spec.channels * spec.height * spec.width
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, spec.classes))
def none(spec):
    return None
def raises(spec):
    raise KeyError("[red]no[/red] such layer")
def wrong(spec):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, 3))
class flat(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.c = nn.Conv2d(spec.channels, 2, 1)
        self.f = nn.Linear(2 * spec.height * spec.width, spec.classes)
    def forward(self, x):
        return self.f(self.c(x).view(len(x), -1))
"""


def _values(one):
    """Return values of an option within its bounds, as they are typed."""
    if one.name in _WORDS:
        return st.sampled_from(_WORDS[one.name])
    if one.choices:
        return st.sampled_from([c for c in one.choices if c != "cuda"])
    if one.kind is bool:
        return st.booleans()
    low, high = _ends(one)
    if one.kind is int:
        top = int(min(high, _LARGEST.get(one.name, low + 4)))
        return st.one_of(st.integers(int(low), max(top, int(low))), st.just(int(low)))
    return st.one_of(
        st.floats(max(low, 1e-4), min(high, 100.0)), st.sampled_from([low, min(high, 1e3)])
    )


def _ends(one):
    words = one.bounds.replace(" and ", " ").split()
    numbers = [float(w) for w in words if w[0].isdigit() or w[0] == "-"]
    if "from" in words:
        return numbers[0], numbers[1]
    low = numbers[0] if numbers else 0.0
    return low, numbers[1] if len(numbers) > 1 else math.inf


@st.composite
def _options(draw):
    """Return settings by name: most within their bounds, now and then one that is not."""
    known = {one.name: one for one in options_of_runs()}
    found = {}
    for name in draw(st.lists(st.sampled_from(sorted(known)), max_size=5, unique=True)):
        wrong = draw(st.integers(0, 7)) == 7
        found[name] = draw(st.sampled_from(WRONG) if wrong else _values(known[name]))
    return found


@st.composite
def _arrays(draw):
    """Return the arrays of a file of data, in which something may be wrong."""
    side, channels = draw(st.integers(1, 9)), draw(st.sampled_from([0, 1, 3, 4]))
    classes = draw(st.integers(1, 6))
    kind = draw(st.sampled_from(["uint8", "float32", "float64", "int64", "bool"]))
    random = np.random.default_rng(draw(st.integers(0, 3)))
    found = {}
    for part, most in (("train", 90), ("test", 20)):
        count = draw(st.integers(0, most)) if draw(st.booleans()) else most
        shape = (count, side, side, channels) if channels else (count, side, side)
        found[f"x_{part}"] = random.integers(0, 255, shape).astype(kind)
        found[f"y_{part}"] = np.arange(count) % classes
    fault = draw(st.sampled_from(["", "", "", "", "nan", "short", "label", "float", "less", "2d"]))
    if fault == "nan" and kind.startswith("float") and found["x_train"].size:
        found["x_train"].flat[0] = math.nan
    elif fault == "short":
        found["y_train"] = found["y_train"][:-1]
    elif fault == "label":
        found["y_test"] = found["y_test"] - 1
    elif fault == "float":
        found["y_train"] = found["y_train"] + 0.5
    elif fault == "less":
        del found["y_test"]
    elif fault == "2d":
        found["x_test"] = found["x_test"].reshape(len(found["x_test"]), -1)
    return found


def _words(options):
    words = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True or value is False:
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words.append(f"{flag}={value}")
    return words


def _limits():
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)


def _strict(text):
    def refuse(word):
        raise AssertionError(f"{word} in JSON")

    return json.loads(text, parse_constant=refuse)


def check_summary(found, options):
    """Check what holds in every summary."""
    sizes = found["bytes"]
    for direction in ("up", "down"):
        total = sizes[f"per_client_{direction}"]
        assert total == sum(phase[direction] for phase in sizes["by_phase"].values())
        mean = sum(by[direction] for by in sizes["by_client"].values()) / len(sizes["by_client"])
        assert abs(mean - total) <= len(sizes["by_phase"]), (direction, mean, total)
        assert 0 <= sizes["overhead"][direction] <= total + 1
    for name, value in found["accuracy"].items():
        limit = 0.5 if name == "clients_std" else 1
        assert value is None or 0 <= value <= limit, (name, value)
    assert found["rounds_finished"] <= found["rounds"]
    if found["privacy"] is None:
        assert "dp_eps" not in options
    else:
        asked = float(options["dp_eps"])
        assert found["privacy"]["epsilon"] <= asked * (1 + 1e-9), found["privacy"]


class Commands:
    """Runs what is drawn in a folder of its own."""

    def __init__(self, home):
        self.home, self.ends = home, {}
        (home / "mine.py").write_text(MODELS)
        for label in "ab":
            (home / "pictures" / label).mkdir(parents=True)

    def run(self, given_options, from_file, arrays, command):
        np.savez(self.home / "data.npz", **arrays)
        options = {**BASE, **given_options}
        if "dp_eps" in options and "warmup_epochs" not in given_options:
            del options["warmup_epochs"]
        if arrays_used := options.get("dataset") == "data.npz":
            options.setdefault("samples_per_client", 16)
        typed = {n: v for n, v in options.items() if n not in from_file}
        written = {n: v for n, v in options.items() if n in from_file}
        (self.home / "run.toml").write_text(tomli_w.dumps(written), encoding="utf-8")
        out = Path(tempfile.mkdtemp(dir=self.home)) / "out"
        words = [command, "--json", "--out", str(out), "--config", "run.toml"]
        if command == "compare":
            typed.pop("seed", None)
            words += ["--methods", "codream,fedavg", "--trials", "1", "--match", "rounds"]
        code, text, _ = call([*words, *_words(typed)], self.home / "told.txt", prepare=_limits)
        self.ends[code] = self.ends.get(code, 0) + 1
        shown = f"{[*words, *_words(typed)]} {written} {arrays_used}\n{text[-2000:]}"
        assert code in (0, 2, 3), f"ended in {code}: {shown}"
        assert "Traceback" not in text, shown
        if code == 2:
            lines = [x for x in text.splitlines() if x.lower().startswith(("error", "usage"))]
            assert lines, f"no line says what is wrong: {shown}"
        for path in out.rglob("*.json"):
            found = _strict(path.read_text(encoding="utf-8"))
            if path.name == "summary.json":
                check_summary(found, options)


def main(examples, seed="0"):
    """Run so many examples; a failing one is shrunk and told."""
    with tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        sys.path.insert(0, home)
        commands = Commands(Path(home))

        @settings(
            max_examples=int(examples),
            deadline=None,
            database=None,
            derandomize=seed == "0",
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(
            _options(),
            st.sets(st.sampled_from(sorted(one.name for one in options_of_runs()))),
            _arrays(),
            st.sampled_from(["simulate"] * 5 + ["compare"]),
        )
        def check(given_options, from_file, arrays, command):
            commands.run(given_options, from_file, arrays, command)

        for known in EXAMPLES if int(examples) > _SAMPLE else ():
            check = example(*known)(check)
        try:
            check()
        finally:
            print({code: commands.ends[code] for code in sorted(commands.ends)})


_GOOD = {
    "x_train": np.zeros((60, 4, 4), np.uint8),
    "y_train": np.arange(60) % 3,
    "x_test": np.zeros((9, 4, 4), np.uint8),
    "y_test": np.arange(9) % 3,
}
# What was found once: options, those of them that stand in the file, data, command.
EXAMPLES = [
    ({"dataset": "data.npz"}, set(), _GOOD, "simulate"),
    ({"dataset": "data.npz", "dp_eps": 8.0, "dp_steps": 2}, {"dp_eps"}, _GOOD, "simulate"),
]

if __name__ == "__main__":
    main(*sys.argv[1:])
