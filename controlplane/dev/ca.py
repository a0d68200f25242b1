"""A development certificate authority: identities as Weir expects them, valid for a week, never
for production.

Every certificate carries its identity as a SPIFFE URI (`spiffe://weir.dev/weir/<role>/...`)
besides localhost, 127.0.0.1 and `weir`. Keys are ECDSA P-256, written with mode 0600.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controlplane.clock import Clock

TRUST_DOMAIN: Final = "weir.dev"
VALID: Final = dt.timedelta(days=7)
BACKDATED: Final = dt.timedelta(minutes=5)
"""Clocks of one machine agree; containers' may not."""
SERVER_NAME: Final = "weir"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Files of one identity."""

    ca: Path
    cert: Path
    key: Path


class DevelopmentCa:
    """Makes an authority in `directory` and issues identities from it."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory = directory
        self._now = dt.datetime.fromtimestamp(clock.wall_ms() / 1000, tz=dt.UTC)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Weir development CA")])
        self._cert = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certs=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = directory / "ca.pem"
        self.ca_file.write_bytes(self._cert.public_bytes(serialization.Encoding.PEM))

    def issue(self, role: str, *names: str, expired: bool = False) -> Identity:
        """Issue `spiffe://weir.dev/weir/<role>/<names…>`; with `expired` one that is over."""
        path = "/".join((role, *names))
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path[:64])])
        alternatives = x509.SubjectAlternativeName(
            [
                x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}/weir/{path}"),
                x509.DNSName("localhost"),
                x509.DNSName(SERVER_NAME),
                x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            ]
        )
        purposes = x509.ExtendedKeyUsage(
            [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        )
        cert = (
            self._builder(subject, key.public_key(), expired=expired)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(alternatives, critical=False)
            .add_extension(purposes, critical=False)
            .add_extension(_usage(sign_certs=False), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        stem = self._directory / path.replace("/", "-")
        identity = Identity(
            ca=self.ca_file, cert=stem.with_suffix(".pem"), key=stem.with_suffix(".key")
        )
        identity.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        identity.key.touch(mode=0o600)
        identity.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return identity

    def _builder(
        self, subject: x509.Name, public: ec.EllipticCurvePublicKey, *, expired: bool = False
    ) -> x509.CertificateBuilder:
        end = self._now - BACKDATED if expired else self._now + VALID
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - VALID)
            .not_valid_after(end)
        )


def _usage(*, sign_certs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=sign_certs,
        crl_sign=sign_certs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
