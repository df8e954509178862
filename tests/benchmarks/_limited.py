"""A solve in a process of its own, which is ended when its CPU time or its memory runs out."""

from __future__ import annotations

import math
import multiprocessing
import resource
import signal
import time
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from optprune.problems.net_trim import NetTrim
from optprune.solution import Answer, Termination
from optprune.solvers import Solver

PATIENCE = 4
"""Wall time that a process is given, in multiples of its CPU time: on a busy machine it waits."""

TIME_LIMIT = "time limit"


def solve_limited(
    problem: NetTrim, solver: Solver, seconds: float, memory: float
) -> tuple[Answer | None, float, str | None]:
    """The answer, its CPU seconds, and None; or None, the CPU seconds of the process, and what ended it.

    The solver is loaded by a tiny problem first, so that no import is measured.

    Args:
        problem: solved in a new process.
        solver: its answer's `info` may hold `cpu_seconds`, which then count in place of those measured around it.
        seconds: CPU time of the solve, start of the process apart.
        memory: address space of the process, in GiB.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    arrays = {name: tensor.numpy() for name, tensor in problem.tensors().items()}
    process = context.Process(target=_child, args=(there, arrays, solver, seconds, memory), daemon=True)
    before = _spent_by_children()
    process.start()
    there.close()
    found: Mapping[str, Any] | None = None
    try:
        if here.poll(PATIENCE * seconds + 60):
            found = here.recv()
    except EOFError:
        pass  # it ended without a word: its exit code tells why
    # A process that closed its pipe ends by itself; one that still runs is out of time.
    process.join(5)
    if process.is_alive():
        process.kill()
    process.join()
    if found is None or "failed" in found:
        reason = _reason(process.exitcode, memory) if found is None else found["failed"]
        return None, _spent_by_children() - before, reason
    hint = {name: torch.as_tensor(array) for name, array in found["hint"].items()}
    reason = Termination(found["termination"])
    answer = Answer(torch.as_tensor(found["matrix"]), (reason,), found["steps"], hint, found["info"])
    return answer, found["seconds"], None


def _spent_by_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _child(pipe: Connection, arrays: Mapping[str, Any], solver: Solver, seconds: float, memory: float) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Solution may be inaccurate")  # its certificate says how inaccurate
    tensors = {name: torch.as_tensor(np.asarray(array)) for name, array in arrays.items()}
    problem = NetTrim.restore(tensors, {})
    solver.run(_tiny(problem))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (int(memory * 2**30), int(memory * 2**30)))
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    start = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(start + seconds), most))
    try:
        answer = solver.run(problem)
    except MemoryError:
        pipe.send({"failed": _out_of_memory(memory)})
        return
    spent = time.process_time() - start
    resource.setrlimit(resource.RLIMIT_CPU, (most, most))
    pipe.send(
        {
            "matrix": answer.matrix.numpy(),
            "termination": answer.termination[0].value,
            "steps": answer.steps,
            "hint": {name: tensor.numpy() for name, tensor in answer.hint.items()},
            "info": dict(answer.info),
            "seconds": answer.info.get("cpu_seconds", spent),
        }
    )


def _tiny(problem: NetTrim) -> NetTrim:
    """A problem of the same form with three samples and two neurons."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(3, 2, generator=generator, dtype=torch.float64)
    weight = torch.rand(2, 2, generator=generator, dtype=torch.float64)
    if problem.penalty is not None:
        return NetTrim.from_layer(weight, inputs, penalty=1.0)
    return NetTrim.from_layer(weight, inputs, torch.full((2,), 0.1) if problem.per_neuron else 0.1)


def _reason(code: int | None, memory: float) -> str:
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return TIME_LIMIT
    if code in (-signal.SIGABRT, -signal.SIGSEGV):
        # What compiled code does when an allocation fails.
        return f"{_out_of_memory(memory)}, {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _out_of_memory(memory: float) -> str:
    return f"memory limit of {memory:g} GiB"
