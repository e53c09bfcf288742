"""Old names of options work for one release, and never beside the new one."""

import click
import pytest

from codream_secure.cli.options import given_settings, run_options
from codream_secure.config import aliases
from codream_secure.config.settings import Config, settings
from codream_secure.errors import UserError

OLD, NEW = "parties", "clients"


@pytest.fixture(autouse=True)
def _renamed(monkeypatch):
    monkeypatch.setitem(aliases.ALIASES, OLD, NEW)


def test_a_configuration_takes_the_old_name():
    config = Config.from_options({OLD: 7})
    assert config.data.clients == 7
    assert OLD not in config.options()


def test_both_names_are_refused():
    with pytest.raises(UserError, match="--parties is the old name of --clients: give one of them"):
        Config.from_options({OLD: 7, NEW: 7})


def test_the_command_line_has_the_old_name_hidden_and_notes_its_use(capsys, tmp_path):
    taken = []
    command = click.command("one")(run_options()(lambda **options: taken.append(options)))
    command.main([f"--{OLD}", "7"], standalone_mode=False)
    (file := tmp_path / "run.toml").write_text(f"{OLD} = 5\nrounds = 2\n")
    assert given_settings(taken[0], file) == {"clients": 7, "rounds": 2}
    note = "note: --parties is now called --clients; the next release drops the old name"
    assert capsys.readouterr().err.splitlines() == [note, note]
    command.main(["--help"], standalone_mode=False)
    assert f"--{OLD}" not in capsys.readouterr().out


def test_every_alias_leads_to_a_setting_and_hides_none():
    names = {setting.name for setting in settings()}
    assert set(aliases.ALIASES.values()) <= names
    assert not set(aliases.ALIASES) & names
