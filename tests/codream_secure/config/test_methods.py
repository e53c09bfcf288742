import pytest

from codream_secure.config.methods import parse_method
from codream_secure.errors import UserError


@pytest.mark.parametrize(
    ("name", "secure", "up", "down"),
    [
        ("fedavg", False, 32, 32),
        ("fedprox-secure", True, 16, 32),
        ("moon-8bit", False, 8, 8),
        ("scaffold-secure-4bit", True, 4, 8),
    ],
)
def test_a_name_says_how_models_travel(name, secure, up, down):
    method = parse_method(name)
    assert (method.secure, method.up, method.down) == (secure, up, down)
    assert method.one_model
    assert not method.dreams


def test_methods_that_dream_are_masked_unless_told():
    assert parse_method("codream").secure
    assert not parse_method("codream-fast", secure=False).secure
    assert not parse_method("avgkd").one_model


@pytest.mark.parametrize("name", ["", "fedavgg", "fedavg-", "fml-s", "codream-8bit", "fed"])
def test_unknown_methods_are_named(name):
    with pytest.raises(UserError, match="unknown method"):
        parse_method(name)


@pytest.mark.parametrize("name", ["fedgh-secure", "fedtgp-secure", "fedgen-secure", "avgkd-secure"])
def test_what_needs_single_clients_is_not_masked(name):
    with pytest.raises(UserError, match="cannot run masked, it needs single"):
        parse_method(name)


@pytest.mark.parametrize("name", ["fedavg-0bit", "moon-secure-17bit"])
def test_bits_that_cannot_be_sent_are_refused(name):
    with pytest.raises(UserError, match="1 to 16 bits"):
        parse_method(name)
