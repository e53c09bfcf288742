"""`codream-secure deploy keys`, `roster` and `certificates`."""

import stat

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from codream_secure.errors import UserError
from codream_secure.flower.node_config import read_key, read_roster
from codream_secure.flower.operations.credentials import make_keys, write_roster
from protocols.primitives.keys import SigningKey


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
