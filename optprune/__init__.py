"""Prune neural networks by solving each layer as the optimisation problem that it is; prove how good the answer is.

The public names are listed in `__init__.pyi` and imported on first use, so that `import optprune` costs nothing.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
