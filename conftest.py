"""What every test stands on: checked shapes, reproducible examples, a summary of what did not run."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import hypothesis
import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import install_import_hook

from tests.stand_in import stand_in

if any(name.partition(".")[0] == "optprune" for name in sys.modules):
    raise RuntimeError("optprune was imported before its annotations could be checked; import it in tests only")


# Methods are decorated one by one, where beartype cannot know which class `Self` is; an int is a float, as for pyright.
_TYPES = BeartypeConf(hint_overrides=FrozenDict({Self: object}), is_pep484_tower=True)


def checked(function):
    """Decorate a function, so that a call with other types or shapes than annotated raises."""
    return beartype(conf=_TYPES)(function)


install_import_hook("optprune", f"{__name__}.checked")

hypothesis.settings.register_profile("reproducible", deadline=None, derandomize=True)
hypothesis.settings.load_profile("reproducible")

DATA = "OPTPRUNE_DATA"
NO_DATA = f"{DATA} is not set: point it at the folder that holds layers/, mnist/, nets/ to run this test"
GROUPS = {"slow": "run them with: pytest -m slow", "gpu": "run them on a machine with CUDA: pytest -m gpu"}

_deselected: pytest.StashKey[Counter[str]] = pytest.StashKey()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of test data that OPTPRUNE_DATA names; a test that asks for it is in the group `data`."""
    folder = Path(os.environ[DATA])  # tests without the variable were skipped at collection
    if not folder.is_dir():
        pytest.fail(f"{DATA}={folder} is not a folder; unset it to skip the tests that need data")
    return folder


def caller_settings() -> dict[str, object]:
    """The global settings of torch that belong to the caller."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
    }


@pytest.fixture(autouse=True)
def caller_settings_stay():
    """No test, and so no code of ours, leaves a global setting of torch changed."""
    before = caller_settings()
    yield
    assert caller_settings() == before


@pytest.hookimpl(tryfirst=True)  # before -m selects by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[_deselected] = Counter()
    for item in items:
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker("data")
        if item.get_closest_marker("data") and DATA not in os.environ:
            item.add_marker(pytest.mark.skip(reason=NO_DATA))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none"))


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        groups = [group for group in GROUPS if item.get_closest_marker(group)] or ["other"]
        item.config.stash[_deselected].update(groups)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With several processes, each tells the one that prints the summary what it did not select."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["deselected"] = dict(session.config.stash[_deselected])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every process collects all tests, so that their counts are the same."""
    node.config.stash[_deselected] = Counter(getattr(node, "workeroutput", {}).get("deselected", {}))


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    counts = config.stash.get(_deselected, Counter())
    skipped = Counter(str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []))
    terminalreporter.section("not run, and why")
    for group, remedy in GROUPS.items():
        terminalreporter.write_line(f"{group}: {counts[group]} tests not selected; {remedy}")
    if counts["other"]:
        terminalreporter.write_line(f"other: {counts['other']} tests excluded by the command line")
    for reason, count in skipped.most_common():
        terminalreporter.write_line(f"skipped: {count} x {reason.removeprefix('Skipped: ')}")
    if DATA in os.environ:
        terminalreporter.write_line(f"data: included, from {DATA}={os.environ[DATA]}")


@pytest.fixture(scope="module")
def unchecked():
    """Annotations are not checked in this module: errors are those of the user's process, long runs as fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield


@pytest.fixture
def rng() -> torch.Generator:
    """A generator of its own for each test; the global one belongs to the caller."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device that is not the CPU: a real one where there is one, and one that only refuses what it would refuse."""
    if request.param == "cuda":
        yield "cuda"
        return
    with stand_in() as name:
        yield name
