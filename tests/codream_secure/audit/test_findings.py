"""audit.json holds what the audits found, and the page of the run shows it."""

import msgspec
import numpy as np
import pytest

from codream_secure.audit.findings import Finding, PrivacyAudit, violated
from codream_secure.runs.formats import pretty


def finding(what: str, *, holds: bool | None) -> Finding:
    return Finding(part="sums", what=what, found="1", claimed="2", holds=holds, figures={})


def test_only_refuted_claims_are_violated():
    rows = [finding("a", holds=True), finding("b", holds=False), finding("c", holds=None)]
    assert violated(rows) == ["sums: b"]


def test_the_file_is_read_as_it_was_written_and_strictly():
    figures = {"interval": (0.5, np.inf)}
    rows = [msgspec.structs.replace(finding("a", holds=None), figures=figures)]
    audit = PrivacyAudit(findings=rows, violated=[], config={"clients": 4}, shadows=8, seconds=1.5)
    read = msgspec.json.decode(pretty(audit), type=PrivacyAudit)
    assert read.findings[0].figures == {"interval": [0.5, None]}  # JSON has no infinity
    assert msgspec.structs.replace(read, findings=audit.findings) == audit
    with pytest.raises(msgspec.ValidationError, match="unknown"):
        msgspec.json.decode(pretty(audit).replace("shadows", "unknown"), type=PrivacyAudit)
