"""The certificate of a layer from those of its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optprune.solution import Certificate, Rigor

_RIGOR = (Rigor.EXACT, Rigor.ROUNDED, Rigor.FLOAT)


def total(certificates: Sequence[Certificate]) -> Certificate:
    """One certificate for a layer of independent groups: values add, violations are the largest."""
    if len(certificates) == 1:
        return certificates[0]
    objective = math.fsum(c.objective for c in certificates)
    errors = [c.objective_error for c in certificates]
    known = [error for error in errors if error is not None]
    names = {name for certificate in certificates for name in certificate.details}
    return Certificate(
        objective=objective,
        # fsum rounds once, to nearest: one step down keeps the bound a bound.
        lower_bound=math.nextafter(math.fsum(c.lower_bound for c in certificates), -math.inf),
        primal_residual=max(c.primal_residual for c in certificates),
        dual_residual=max(c.dual_residual for c in certificates),
        rigor=max((c.rigor for c in certificates), key=_RIGOR.index),
        theorem=certificates[0].theorem,
        details={
            f"largest {name}": max(c.details.get(name, -math.inf) for c in certificates) for name in sorted(names)
        },
        # The sum of the objectives is rounded once too, by half a unit in its last place.
        objective_error=math.nextafter(math.fsum([*known, math.ulp(objective)]), math.inf)
        if len(known) == len(errors)
        else None,
    )
