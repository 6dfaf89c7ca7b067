"""What libraries send home by themselves, switched off before the first of them is imported.

`nnet_edge/__init__.py` calls `silence`, so whatever imports a library through this package finds it silent; a process that
such a one starts inherits the variables. What each library does without: docs/silence.md.
"""

from __future__ import annotations

import os
import sys

VARIABLES = {  # library -> what stops it; read at its import, later is too late
    "onnxruntime": ("ORT_DISABLE_TELEMETRY", "1"),
    "huggingface_hub": ("HF_HUB_DISABLE_TELEMETRY", "1"),  # timm imports it
    "mlflow": ("MLFLOW_DISABLE_TELEMETRY", "true"),
    "ray": ("RAY_USAGE_STATS_ENABLED", "0"),
    "wandb": ("WANDB_ERROR_REPORTING", "false"),
}
SENDER = "openvino_telemetry"  # OpenVINO sends a message at its import through it, and has a stub of its own without it


def silence() -> None:
    """Switch telemetry off in this process and those that it starts; warn of a library that is loaded already."""
    loud = [name for name, (variable, value) in VARIABLES.items()
            if name in sys.modules and os.environ.get(variable) != value]  # fmt: skip
    if sys.modules.setdefault(SENDER, None) is not None:  # type: ignore[arg-type]  # None: "there is no such module"
        loud.append("openvino")
    os.environ.update(VARIABLES.values())
    if loud:
        import logging

        words = "%s was imported before nnet_edge, with its telemetry on: import nnet_edge first"
        logging.getLogger(__name__).warning(words, " and ".join(loud))


def silenced() -> dict[str, str]:
    """Library -> how it is kept silent, for those that are; none of them need be installed."""
    found = {name: f"{key}={value}" for name, (key, value) in VARIABLES.items() if os.environ.get(key) == value}
    if sys.modules.get(SENDER, SENDER) is None:
        found["openvino"] = f"{SENDER} cannot be imported"
    return dict(sorted(found.items()))
