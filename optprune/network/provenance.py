"""Where a run's numbers come from: versions, machine, time."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch


def provenance() -> dict[str, Any]:
    """Versions of what computed, the kind of machine, and the time (UTC)."""
    from optprune import __version__

    return {
        "versions": {
            "optprune": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        "machine": platform.machine(),
        "system": platform.system(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
