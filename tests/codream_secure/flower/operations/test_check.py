"""`codream-secure deploy check`: it names what is wrong with a site."""

import json
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509

from codream_secure.data.datasets import load_dataset
from codream_secure.data.spec import InputSpec
from codream_secure.flower.operations.credentials import make_certificates, write_roster
from codream_secure.models.build import build_model


@pytest.fixture
def tls(tmp_path):
    make_certificates(["127.0.0.1", "superlink.example"], tmp_path / "tls")
    return tmp_path / "tls"


def serve(tls):
    """Return the port of a TLS server for one connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "server.pem", tls / "server.key")
    listener = socket.create_server(("127.0.0.1", 0))

    def answer():
        with listener, listener.accept()[0] as plain:
            try:
                context.wrap_socket(plain, server_side=True).close()
            except OSError:
                return

    threading.Thread(target=answer, daemon=True).start()
    return listener.getsockname()[1]


def test_certificates_name_the_hosts_and_are_valid(tls, run):
    certificate = x509.load_pem_x509_certificate((tls / "server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["superlink.example"]
    assert stat.S_IMODE((tls / "server.key").stat().st_mode) == 0o600
    address = f"127.0.0.1:{serve(tls)}"
    code, out, _ = run(
        "deploy", "check", "--data", "digits", "--superlink", address, "--ca", tls / "ca.pem"
    )
    assert code == 0, out
    assert "TLSv1.3, certificate is valid" in out


def test_a_certificate_of_another_authority_is_named(tls, tmp_path, run):
    make_certificates(["127.0.0.1"], tmp_path / "other")
    address = f"127.0.0.1:{serve(tls)}"
    code, out, _ = run(
        "deploy", "check", "--data", "digits", "--superlink", address,
        "--ca", tmp_path / "other" / "ca.pem", "--json",
    )  # fmt: skip
    found = {row["what"]: row for row in json.loads(out)}
    assert code == 2
    assert not found["superlink"]["holds"]
    assert "TLS" in found["superlink"]["told"]
    assert found["data"]["holds"]


def test_check_looks_at_keys_and_data(keys, tmp_path, run):
    write_roster(sorted(keys.glob("*.public")), tmp_path / "r.json")

    def check(client, identity, data="digits"):
        return run(
            "deploy", "check", "--data", data, "--roster", tmp_path / "r.json",
            "--identity", identity, "--client", client,
        )  # fmt: skip

    assert check(1, keys / "1.private")[0] == 0
    code, out, _ = check(2, keys / "1.private")
    assert (code, "is not client 2's key" in out) == (2, True)
    code, out, _ = check(1, keys / "1.private", "nowhere.npz")
    assert (code, "WRONG  data" in out) == (2, True)


APP = Path(__file__).parents[4] / "examples" / "flower"


def test_check_compares_a_site_with_the_run(tmp_path, run):
    images = np.zeros((20, 6, 6), np.uint8)
    labels = np.arange(20) % 10
    np.savez(tmp_path / "six.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)

    def check(*more):
        code, out, _ = run("deploy", "check", "--app", APP, "--json", *more)
        return code, {row["what"]: row for row in json.loads(out)}

    code, found = check("--data", "digits", "--part", "--client", "4", "--model", "lenet5")
    assert code == 0
    assert found["shape"]["holds"]
    assert found["model"]["holds"]
    assert "messages of version" in found["version"]["told"]
    code, found = check("--data", "six.npz", "--part")
    assert (code, found["shape"]["holds"]) == (2, False)
    assert "1 x 6 x 6, 10 classes, the run's 1 x 8 x 8" in found["shape"]["told"]
    code, found = check("--data", "digits")
    assert (code, "samples-per-client" in found["share"]["told"]) == (2, True)
    code, found = check("--data", "digits", "--part", "--client", "5")
    assert "clients 0 to 4, not 5" in found["client"]["told"]
    code, found = check("--data", "digits", "--part", "--model", "nothing:at_all")
    assert (code, found["model"]["holds"]) == (2, False)


def test_check_says_what_is_wrong_with_an_app(tmp_path, run):
    code, out, _ = run("deploy", "check", "--data", "digits", "--app", tmp_path)
    assert (code, "is no app folder" in out) == (2, True)
    (tmp_path / "pyproject.toml").write_text("[tool.flwr.app.config]\nclient = 3\n")
    code, out, _ = run("deploy", "check", "--data", "digits", "--app", tmp_path)
    assert (code, "WRONG  run" in out) == (2, True)


def test_a_superlink_that_is_not_there_is_said(run):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code, out, _ = run("deploy", "check", "--data", "digits", "--superlink", f"127.0.0.1:{port}")
    assert (code, "cannot be reached" in out) == (2, True)


def test_three_hospitals_have_the_shape_of_the_public_part(tmp_path, monkeypatch, run):
    run("--version")  # moves to an empty folder
    folder = APP / "hospitals"
    subprocess.run([sys.executable, folder / "make_data.py"], cwd=tmp_path, check=True)
    spec = load_dataset("public.npz", tmp_path).spec
    assert spec == InputSpec(1, 8, 8, 10)
    assert load_dataset("harbour.npz", tmp_path).spec.classes == 9
    for name in ("north", "south", "harbour"):
        assert len(load_dataset(f"{name}.npz", tmp_path).y_train) > 300
    shutil.copy(folder / "our_model.py", tmp_path)
    assert build_model("our_model:small_cnn", spec, seed=0) is not None
