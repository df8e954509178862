"""The README's Python runs from top to bottom, and its commands exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.main import get_command

from optprune.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = "\n".join(text for language, text in BLOCKS if not language)


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = [text for language, text in BLOCKS if language == "python"]
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        for block in blocks:
            # Padding keeps the README's line numbers in a traceback.
            line = README[: README.index(block)].count("\n")
            exec(compile("\n" * line + block, "README.md", "exec"), names)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^make ([a-z]+)", SHELL, re.MULTILINE))))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_commands_and_options_exist():
    group: Any = get_command(app)
    commands = group.commands
    shown = re.findall(r"^(?:\.venv/bin/)?optprune (\w+)(.*)$", SHELL, re.MULTILINE)
    assert {name for name, _ in shown} >= {"prune", "verify", "methods"}
    for name, rest in shown:
        assert name in commands
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"(?<=\s)--[\w-]+", rest)) <= known


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
