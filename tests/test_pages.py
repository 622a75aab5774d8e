"""The pages of docs/ and the README: short, linked, and with blocks that run."""

import argparse
import re
from pathlib import Path

import pytest
from helpers import tiny

from cotjax.cli.main import _parser
from cotjax.weights.huggingface import save_hf

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_has_at_most_150_lines():
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_of_prose_has_more_than_100_columns(page):
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for line in prose.splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > 100] == []


def test_the_readmes_blocks_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {}
    for text in blocks(ROOT / "README.md", "python"):
        exec(compile(text, "README.md", "exec"), names)
    assert len(names["weights"]) == len(names["roles"])
    assert names["logits"].shape[:2] == (1, 3)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_the_page_on_models_trains_the_decoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_hf(Path("my-model"), tiny.model_config(), tiny.params())
    names = {}
    (text,) = blocks(ROOT / "docs" / "models.md", "python")
    exec(compile(text, "models.md", "exec"), names)
    assert names["after"] < names["before"]
    assert Path("my-model-trained/config.json").exists()


def test_every_command_on_the_pages_exists():
    (commands,) = (
        action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    shown = {
        word
        for page in PAGES
        for block in blocks(page, "(?:bash|sh)")
        for word in re.findall(r"^(?:\S+=\S+ )?(?:\S*/)?cotjax +([a-z][\w-]*)", block, re.MULTILINE)
    }
    assert "study" in shown and shown <= set(commands.choices)
