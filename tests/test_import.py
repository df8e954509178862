"""Importing the package leaves the caller's process as it was, and starts fast."""

import json
import subprocess
import sys

PROBE = """
import json, logging, os, random, signal, sys, warnings
import numpy, torch

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        "cudnn": [torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic],
        "print options": repr(vars(torch._tensor_str.PRINT_OPTS)),
        "torch rng": hash(torch.get_rng_state().numpy().tobytes()),
        "numpy rng": hash(repr(numpy.random.get_state(legacy=False))),
        "python rng": hash(random.getstate()),
        "numpy errors": numpy.geterr(),
        "environment": dict(os.environ),
        "log handlers": len(logging.getLogger().handlers),
        "log level": logging.getLogger().level,
        "interrupt": repr(signal.getsignal(signal.SIGINT)),
        "exception hook": repr(sys.excepthook),
    }

before = state()
import optprune
missing = [name for name in optprune.__all__ if not hasattr(optprune, name)]  # loads every public module
after = state()
print(json.dumps({
    "changed": [name for name in before if before[name] != after[name]],
    "loaded": sorted(sys.modules.keys() & {
        "cvxpy", "sklearn", "matplotlib", "osqp", "clarabel", "scs", "flint", "sympy",
        "distributed", "transformers", "onnx", "accelerate", "hypothesis", "pytest",
    }),
    "missing": missing,
}))
"""


def probe() -> dict[str, list[str]]:
    # A new process: in this one the package is imported, and its annotations are checked.
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "importing optprune wrote to standard error"
    return json.loads(done.stdout)


def test_import_changes_nothing_and_loads_nothing_heavy():
    found = probe()
    assert found["changed"] == []
    assert found["loaded"] == []
    assert found["missing"] == [], "names in optprune.__all__ that do not exist"
