"""The result of `codream-secure audit privacy`, as audit.json holds it. This needs no PyTorch."""

from typing import Any

import msgspec


class Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the result.

    Attributes:
        part: of the audit that it belongs to.
        what: was attacked.
        found: what the attack reached, in words.
        claimed: what was claimed, in words; empty if nothing was.
        holds: whether the claim holds; None if nothing was claimed.
        figures: the numbers behind the words, by the names of the audit that found them.
    """

    part: str
    what: str
    found: str
    claimed: str
    holds: bool | None
    figures: dict[str, Any]


class PrivacyAudit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file audit.json.

    Attributes:
        findings: of all parts.
        violated: names of the claims that the audit refutes.
        config: settings of the attacked federation, by flat name.
        shadows: runs for membership inference.
        seconds: that the audit took.
    """

    findings: list[Finding]
    violated: list[str]
    config: dict[str, Any]
    shadows: int
    seconds: float


def violated(findings: list[Finding]) -> list[str]:
    """Return the names of the claims that do not hold."""
    return [f"{row.part}: {row.what}" for row in findings if row.holds is False]
