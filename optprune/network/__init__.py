"""Networks: the only part of the package that knows `torch.nn`.

The planners, some of which run solvers, are imported on first use: reading and verifying a run needs no solver.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["plan"])
