"""`predict` and `export` on the command line."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from kept_models import IMAGES, kept_model

from codream_secure import UserError
from codream_secure.cli.main import cli


def run(*words):
    found = CliRunner().invoke(cli, [str(word) for word in words])
    if isinstance(found.exception, UserError):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.stdout


def test_two_commands_predict_and_export(tmp_path):
    model = kept_model()
    model.save(tmp_path / "model")
    np.savez(tmp_path / "new.npz", images=IMAGES)
    lines = run("predict", tmp_path / "model", tmp_path / "new.npz", "--json").splitlines()
    assert [json.loads(line)["label"] for line in lines] == model.predict(IMAGES).tolist()
    plain = run("predict", tmp_path / "model", tmp_path / "new.npz").splitlines()
    assert plain[0].startswith(f"{tmp_path / 'new.npz'}[0]  ")
    assert run("export", tmp_path / "model", "--torchscript").strip() == str(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("predict", "nowhere", "a.png"), "no model"),
        (("predict", "model", "nowhere.png"), "no such file"),
        (("export", "model"), "which format"),
        (("export", "nowhere", "--onnx"), "no model"),
    ],
)
def test_what_is_missing_is_told(tmp_path, monkeypatch, words, reason):
    monkeypatch.chdir(tmp_path)
    kept_model().save("model")
    with pytest.raises(UserError, match=reason):
        run(*words)
