"""Makes keys, rosters and development certificates for sites."""

import datetime as dt
import ipaddress
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from codream_secure.errors import UserError
from codream_secure.storage.files import replace
from codream_secure.storage.folder_lock import claimed
from protocols.primitives.keys import KEY_SIZE, SigningKey

_DAYS = 90
_PRIVATE_MODE, _FOLDER_MODE = 0o600, 0o700
_Key = ec.EllipticCurvePrivateKey


def make_keys(client: int, folder: Path) -> list[Path]:
    """Make a client's signing key and Flower node key; return the four files.

    Raises:
        UserError: one of the files exists already.
    """
    folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    with claimed(folder):
        return _make_keys(client, folder)


def _make_keys(client: int, folder: Path) -> list[Path]:
    paths = [folder / f"{client}.{kind}" for kind in ("private", "public", "node", "node.pub")]
    for path in paths:
        if path.exists():
            raise UserError(f"{path} is there already; keys are never replaced, use another --out")
    secret = os.urandom(KEY_SIZE)
    replace(paths[0], secret.hex().encode() + b"\n", mode=_PRIVATE_MODE)
    replace(paths[1], SigningKey.from_private_bytes(secret).public.hex() + "\n")
    node = ec.generate_private_key(ec.SECP384R1())  # the curve that Flower requires for nodes
    private = node.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    replace(paths[2], private, mode=_PRIVATE_MODE)
    public = node.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    replace(paths[3], public + b"\n")
    return paths


def write_roster(public: Sequence[Path], out: Path) -> int:
    """Write a roster of public keys, by the number in their files' names; return how many.

    Raises:
        UserError: a file holds no public key, two hold the same, or the numbers have gaps.
    """
    found: dict[int, str] = {}
    for path in public:
        number = re.fullmatch(r"(\d+)\.public", path.name)
        try:
            key = path.read_text(encoding="ascii").strip()
            valid = number is not None and len(bytes.fromhex(key)) == KEY_SIZE
        except (OSError, ValueError):
            valid = False
        if not valid or number is None:
            raise UserError(f"{path} is no public key of `deploy keys` (NUMBER.public)")
        found[int(number[1])] = key
    if sorted(found) != list(range(len(found))):
        raise UserError(f"clients are numbered from 0 without gaps, not {sorted(found)}")
    if len(set(found.values())) != len(found):
        raise UserError("two clients have the same key")
    clients = {str(number): found[number] for number in sorted(found)}
    replace(out, json.dumps({"clients": clients}, indent=2) + "\n")
    return len(found)


def make_certificates(hosts: Sequence[str], folder: Path) -> list[Path]:
    """Make a certificate authority and a server certificate for these hosts, valid for 90 days.

    Raises:
        UserError: there is no host, or the folder has certificates already.
    """
    if not hosts:
        raise UserError("--hosts names no host")
    folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    with claimed(folder):
        return _make_certificates(hosts, folder)


def _make_certificates(hosts: Sequence[str], folder: Path) -> list[Path]:
    paths = [folder / name for name in ("ca.pem", "ca.key", "server.pem", "server.key")]
    for path in paths:
        if path.exists():
            raise UserError(f"{path} is there already; use another --out")
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "codream-secure development")])
    ca = (
        _certificate(issuer, issuer, authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(authority, hashes.SHA256())
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    certificate = (
        _certificate(subject, issuer, server)
        .add_extension(x509.SubjectAlternativeName([_name(h) for h in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
            critical=False,
        )
        .sign(authority, hashes.SHA256())
    )
    for path, made in ((paths[0], ca), (paths[2], certificate)):
        replace(path, made.public_bytes(serialization.Encoding.PEM))
    for path, key in ((paths[1], authority), (paths[3], server)):
        replace(path, _pem(key), mode=_PRIVATE_MODE)
    return paths


def _certificate(subject: x509.Name, issuer: x509.Name, key: _Key) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: _Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
