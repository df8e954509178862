"""Networks: the only part of the package that knows `torch.nn`."""
