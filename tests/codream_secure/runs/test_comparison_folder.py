"""What a comparison's folder says of its cells, and how it is run again."""

import pytest

from codream_secure.errors import UserError
from codream_secure.runs.comparison_folder import matched, missing, rerun


def test_a_comparison_and_its_cells_are_run_again_by_its_command(comparison):
    command = (
        "codream-secure compare --methods codream,fedavg-secure --seeds 0,1 --match bytes "
        "--trials 2 --fed-lr 0.1 --clients 2 --adaptive kl --no-secure --partition 'a b'"
    )
    assert rerun(comparison) == command
    assert rerun(comparison / "cells" / "codream-seed0") == command
    (comparison / "compare.json").unlink()
    assert rerun(comparison) == "codream-secure compare"


def test_a_comparison_of_an_old_format_is_named_with_its_format(comparison):
    (comparison / "compare.json").write_text('{"schema_version": 1}')
    with pytest.raises(UserError, match=r"compared: compare.json has format 1; .* new folder"):
        matched(comparison)


def test_cells_without_results_say_why(comparison):
    assert missing(comparison) == {
        "moon-seed0": "out of <memory>",
        "scaffold-seed0": "not finished",
    }
    assert missing(comparison / "cells" / "codream-seed0") == {}
