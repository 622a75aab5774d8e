"""The tables of docs/results.md: those of the archives that are committed beside it."""

import json
import re
from pathlib import Path

import pytest
from helpers.planted import PLANTED, Cell, write_planted

from cotjax.cli.main import main
from cotjax.report.published import published_tables
from cotjax.report.summarize import summarize
from cotjax.runtime.archive import read_text
from cotjax.runtime.files import read_json

PRIMARY = {
    **{"measure": "d1", "kinds": ["cot", "prompt"], "margin": 0.1},
    **{"arms": [], "domains": ["in_domain"]},
}
DOCS = Path(__file__).parents[2] / "docs"
MARK = re.compile(r"<!-- cotjax report --table docs/(\S+) -->\n\n(.*?)\n\n<!-- end -->", re.DOTALL)


def test_the_page_of_results_has_the_tables_of_its_archives(capsys):
    found = MARK.findall((DOCS / "results.md").read_text(encoding="utf-8"))
    assert {name for name, _ in found} == {
        str(path.relative_to(DOCS)) for path in (DOCS / "results").iterdir()
    }
    for name, tables in found:
        assert main(["report", "--table", str(DOCS / name)]) == 0
        assert capsys.readouterr().out == tables + "\n", f"print the tables of {name} again"
    assert sum(path.stat().st_size for path in (DOCS / "results").rglob("*.xz")) < 30e6


def _archives():
    for path in sorted((DOCS / "results").iterdir()):
        # A folder of many takes a minute.
        marks = [pytest.mark.slow] if path.is_dir() else []
        yield pytest.param(path, id=path.name, marks=marks)


@pytest.mark.parametrize("archive", list(_archives()))
def test_published_records_give_the_published_numbers(archive, capsys):
    assert main(["study", "--check", str(archive)]) == 0
    assert capsys.readouterr().out.endswith("All agree.\n")


@pytest.fixture
def printed(tmp_path, capsys):
    """Return a function that prints the tables of a study with these cells."""

    def run(name, cells, **shape):
        folder = tmp_path / name
        write_planted(folder, cells, **shape)
        about = read_json(folder / "run.json", "cotjax")
        (folder / "run.json").write_text(json.dumps(about | {"config": {"primary": PRIMARY}}))
        summarize(folder)
        assert main(["report", "--table", str(folder)]) == 0
        return capsys.readouterr().out

    return run


def test_planted_effects_are_in_the_tables_and_none_are_where_none_were_planted(printed):
    """The same commands: what was planted is found, and where nothing was, nothing is."""
    shape = {"games": 32, "states": 6, "seeds": 3}
    cells = {"named": Cell(0.81, 0.25), "hybrid": PLANTED["hybrid"]}
    planted = printed("planted", cells, **shape)
    verdicts = {line.split()[1]: line for line in planted.splitlines() if ", p " in line}
    assert "in the CoT advantage" in verdicts["named"], planted
    assert "in the prompt action" in verdicts["hybrid"], planted
    nothing = {"same": Cell(0.30, 0.25), "reduced": Cell(0.30, 0.25, fraction=0.3)}
    found = printed("nothing", nothing, **shape | {"games": 16})
    assert "no clear gain" in found
    assert "in the CoT advantage, p" not in found
    assert "in the prompt action, p" not in found


def test_another_schema_is_refused(tmp_path, capsys):
    write_planted(tmp_path, {"named": PLANTED["named"]}, games=2, states=1)
    summarize(tmp_path)
    summary = read_json(tmp_path / "summary.json", "cotjax")
    with pytest.raises(ValueError, match="schema_version is 3"):
        published_tables(summary | {"schema_version": 3})
    assert read_text(tmp_path, "summary.json").startswith("{")
    (tmp_path / "summary.json").write_text('{"schema_version": 3}')
    assert main(["report", "--table", str(tmp_path)]) == 3
    assert "write it with `cotjax report`" in capsys.readouterr().err
