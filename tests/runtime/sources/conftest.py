"""What tests of several kinds of camera share."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key."""
    path = tmp_path_factory.mktemp("tls") / "camera.pem"
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=camera"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-keyout", str(path), "-out", str(path) + ".crt"]
    subprocess.run(["openssl", "req", "-x509", *made, *names], check=True, capture_output=True, timeout=20)
    path.write_bytes(path.read_bytes() + Path(str(path) + ".crt").read_bytes())
    return path
