"""`codream-secure deploy` without processes: keys, rosters, certificates, checks."""

import json
import os
import shutil
import signal
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
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from codream_secure.data.datasets import load_dataset
from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.flower.node_config import read_key, read_roster, site_settings
from codream_secure.flower.operations.credentials import make_certificates, make_keys, write_roster
from codream_secure.models.build import build_model
from protocols.primitives.keys import SigningKey


@pytest.fixture
def keys(tmp_path):
    for client in range(3):
        make_keys(client, tmp_path / "keys")
    return tmp_path / "keys"


def test_keys_are_the_owners_alone_and_belong_together(keys):
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    for client in range(3):
        for kind in ("private", "node"):
            assert stat.S_IMODE((keys / f"{client}.{kind}").stat().st_mode) == 0o600
        own = SigningKey.from_private_bytes(read_key(keys / f"{client}.private"))
        assert own.public.hex() == (keys / f"{client}.public").read_text().strip()
        node = load_ssh_private_key((keys / f"{client}.node").read_bytes(), None)
        assert node.curve.name == "secp384r1"
    assert len({(keys / f"{c}.private").read_text() for c in range(3)}) == 3


def test_keys_are_never_replaced(keys):
    with pytest.raises(UserError, match="never replaced"):
        make_keys(0, keys)


def test_a_roster_has_everybodys_public_key_in_order(keys, tmp_path):
    assert write_roster(sorted(keys.glob("*.public"), reverse=True), tmp_path / "r.json") == 3
    expected = tuple(bytes.fromhex((keys / f"{c}.public").read_text()) for c in range(3))
    assert read_roster(tmp_path / "r.json") == expected


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda k: (k / "1.public").unlink(), "without gaps"),
        (lambda k: (k / "1.public").write_text("zz"), "no public key"),
        (lambda k: (k / "1.public").write_text((k / "0.public").read_text()), "same key"),
        (lambda k: (k / "1.public").rename(k / "x.public"), "no public key"),
    ],
)
def test_a_roster_that_would_not_work_is_refused(keys, tmp_path, fault, told):
    fault(keys)
    with pytest.raises(UserError, match=told):
        write_roster(sorted(keys.glob("*.public")), tmp_path / "r.json")


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
    assert code == 1
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
    assert (code, "is not client 2's key" in out) == (1, True)
    code, out, _ = check(1, keys / "1.private", "nowhere.npz")
    assert (code, "WRONG  data" in out) == (1, True)


APP = Path(__file__).parents[3] / "examples" / "flower"


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
    assert (code, found["shape"]["holds"]) == (1, False)
    assert "1 x 6 x 6, 10 classes, the run's 1 x 8 x 8" in found["shape"]["told"]
    code, found = check("--data", "digits")
    assert (code, "samples-per-client" in found["share"]["told"]) == (1, True)
    code, found = check("--data", "digits", "--part", "--client", "5")
    assert "clients 0 to 4, not 5" in found["client"]["told"]
    code, found = check("--data", "digits", "--part", "--model", "nothing:at_all")
    assert (code, found["model"]["holds"]) == (1, False)


def test_check_says_what_is_wrong_with_an_app(tmp_path, run):
    code, out, _ = run("deploy", "check", "--data", "digits", "--app", tmp_path)
    assert (code, "is no app folder" in out) == (1, True)
    (tmp_path / "pyproject.toml").write_text("[tool.flwr.app.config]\nclient = 3\n")
    code, out, _ = run("deploy", "check", "--data", "digits", "--app", tmp_path)
    assert (code, "WRONG  run" in out) == (1, True)


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


def test_local_wants_a_site_each_or_none(run):
    code, _, err = run("deploy", "local", "--clients", "3", "--site", 'data="a.npz"')
    assert (code, "one each, or none" in err) == (2, True)


def test_a_superlink_that_is_not_there_is_said(run):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code, out, _ = run("deploy", "check", "--data", "digits", "--superlink", f"127.0.0.1:{port}")
    assert (code, "cannot be reached" in out) == (1, True)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "lacks client="),
        ({"client": 0, "state": "x", "data": "digits", "identity": "none"}, "no signing key"),
        ({"client": 0, "state": "x", "data": "digits", "roster": "none"}, "is no roster"),
    ],
)
def test_a_node_configuration_that_cannot_work_is_refused(config, told):
    with pytest.raises(UserError, match=told):
        site_settings(config)


def test_data_of_ones_own_come_from_a_function(tmp_path, monkeypatch):
    (tmp_path / "our_site.py").write_text(
        "from pathlib import Path\n"
        "from codream_secure.data.datasets import load_dataset\n"
        "def data():\n    return load_dataset('digits', Path('data'))\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = {"client": 0, "state": tmp_path / "s", "data": "our_site:data"}
    assert len(site_settings(config).load().y_train) > 1000
    with pytest.raises(UserError, match="returned a int, not a Dataset"):
        site_settings({**config, "data": "our_site:wrong"}).load()
    with pytest.raises(UserError, match="our_site:nothing"):
        site_settings({**config, "data": "our_site:nothing"}).load()


def test_local_does_not_touch_a_folder_that_is_there(run, tmp_path):
    (tmp_path / "there").mkdir()
    code, _, err = run("deploy", "local", "--out", "there")
    assert code == 2
    assert "is there already" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_local_stops_what_it_started_when_it_is_told_to_end(run, monkeypatch, number):
    stopped = []

    class Started:
        def __init__(self, **_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            stopped.append(True)

        def run(self):
            os.kill(os.getpid(), number)
            raise AssertionError("it goes on")

    monkeypatch.setattr("codream_secure.flower.operations.local.Local", Started)
    ends = (signal.SIGTERM, signal.SIGHUP)
    before = {one: signal.signal(one, signal.SIG_DFL) for one in ends}
    try:
        code, *_ = run("deploy", "local")
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert code == 128 + number
    assert stopped == [True]
