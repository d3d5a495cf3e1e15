"""TLS for the embedded exchange: the owner's certificate, or one made here that clients are told to trust.

The one made here is its own authority, for this machine's names and the address served; clients trust it through
``SSL_CERT_FILE`` (the official SDK's sockets speak TLS only) or ccxt's ``cafile``.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from crypto_qlib.core.clock import Clock, utc
from crypto_qlib.core.errors import UserError

CERTIFICATE: Final = "tls_certificate.pem"
_VALID: Final = timedelta(days=397)
"""The longest browsers accept."""
_RENEW_BEFORE: Final = timedelta(days=30)
_OWNER_ONLY: Final = 0o600


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Certificate chain and private key, PEM."""

    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return the server's TLS settings.

        Raises
        ------
        UserError
            If the files cannot be read or do not belong together.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.certificate, self.key)
        except OSError as e:  # ssl.SSLError is one
            raise UserError(
                f"cannot serve TLS with {self.certificate} and {self.key}: {e.strerror or e}",
                "give a PEM certificate and its own unencrypted key",
            ) from e
        return context


def own_certificate(folder: Path, host: str, clock: Clock) -> TlsFiles:
    """Return the certificate kept in ``folder``, making it where there is none for ``host`` or it soon ends.

    Raises
    ------
    UserError
        If the folder cannot be written.
    """
    files = TlsFiles(folder / CERTIFICATE, folder / "tls_key.pem")
    names = _names(host)
    if _is_good(files, names, clock):
        return files
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _signed(key, names, clock)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.key.unlink(missing_ok=True)
        with os.fdopen(os.open(files.key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY), "wb") as target:
            target.write(pem)
        files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    except OSError as e:
        raise UserError(f"cannot write the TLS certificate to {folder}: {e.strerror or e}") from e
    return files


def _names(host: str) -> list[x509.GeneralName]:
    addresses = ["127.0.0.1", "::1"]
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    try:
        if not ipaddress.ip_address(host).is_unspecified and host not in addresses:
            addresses.append(host)
    except ValueError:
        if host != "localhost":
            names.append(x509.DNSName(host))
    return [*names, *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses)]


def _is_good(files: TlsFiles, names: list[x509.GeneralName], clock: Clock) -> bool:
    try:
        known = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        covered = known.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    ends_late = known.not_valid_after_utc - _RENEW_BEFORE > utc(clock.now_ns())
    return files.key.exists() and ends_late and set(names) <= set(covered)


def _signed(key: ec.EllipticCurvePrivateKey, names: list[x509.GeneralName], clock: Clock) -> x509.Certificate:
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "crypto-qlib embedded exchange")])
    now = utc(clock.now_ns())
    builder = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_usage(), critical=True)
    )
    return builder.sign(key, hashes.SHA256())


def _usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
