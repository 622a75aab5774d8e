"""What the page begins with: twelve arms of sixty checkpoints, the OOD matrix, and its marks."""

from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.planted import PLANTED, Cell, write_planted
from matplotlib.backends.backend_agg import FigureCanvasAgg

from cotjax import report
from cotjax.bench.browser import Browser, find_chromium
from cotjax.diagnostics.share import Verdict
from cotjax.diagnostics.statistics import Estimate
from cotjax.report.answer import answer
from cotjax.report.figures import overview_figure, panel_figure
from cotjax.report.forest import facet_figure, facets, forest_figure
from cotjax.report.labels import percent
from cotjax.report.matrix import matrix, not_interpreted
from cotjax.report.page import write_report
from cotjax.report.panels import CHARTS
from cotjax.report.section import Cell as Shown
from cotjax.report.section import SectionRow, SectionTable
from cotjax.report.summarize import summarize
from cotjax.report.verdicts import NOT_INTERPRETED, primary_row, verdict_of, verdicts
from cotjax.runtime.pages import load_template

DOMAINS = ("in_domain", "ood_rooms")
PARTS = Path(report.__path__[0]) / "parts.html.jinja"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    run = tmp_path_factory.mktemp("front")
    cells = {name: PLANTED[name] for name in ("named", "hybrid", "direct")}
    write_planted(run, cells, games=40, states=2, domains=DOMAINS, played=False)
    return run, summarize(run)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """12 arms of 60 checkpoints, whose curves lie on each other or near the ends of the axis."""
    run = tmp_path_factory.mktemp("many")
    cells = {f"arm_{i}_with_quite_a_long_name_of_its_own": Cell(0.7, 0.3) for i in range(12)}
    summary = summarize(write_planted(run, cells, games=3, states=1, domains=DOMAINS))
    rng = np.random.default_rng(0)
    steps = tuple(range(0, 601, 10))
    points = []
    for arm in summary.arms:
        for domain in summary.domains:
            like = summary.point(arm, 60, domain)
            # Rates near 0, one half or 1, so that names want the same place.
            centre = rng.choice([0.01, 0.5, 0.99])
            for step in steps:
                metrics = {}
                for name, each in like.metrics.items():
                    value = float(np.clip(centre + rng.normal() * 0.01, 0, 1))
                    low, high = max(value - 0.1, 0.0), min(value + 0.1, 1.0)
                    metrics[name] = Estimate(value, low, high, each.n or 6, each.games or 3)
                points.append(replace(like, checkpoint=step, metrics=metrics))
    return run, replace(summary, points=tuple(points), checkpoints=steps, last_checkpoint=600)


@pytest.fixture(scope="module")
def page(many):
    """The path of the page of `many`, which takes seconds to write."""
    return write_report(*many)


def boxes(figure):
    """Return the visible texts of a figure that is drawn, with their boxes, by axes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, found = canvas.get_renderer(), []
    for axes in figure.axes:
        low, high = axes.get_xlim()
        steps = [
            label
            for place, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
            if low <= place <= high
        ]
        texts = [text for text in (*axes.texts, *steps, axes._left_title) if text.get_text()]
        found.append([(text.get_text(), text.get_window_extent(renderer)) for text in texts])
    return found


def assert_apart(found):
    for texts in found:
        assert texts
        for (one, first), (other, second) in combinations(texts, 2):
            inner = first.padded(-0.5), second.padded(-0.5)
            assert not inner[0].overlaps(inner[1]), (one, other)


def test_names_of_twelve_arms_and_sixty_checkpoints_never_overlap(many):
    _, summary = many
    figure = overview_figure(summary)
    assert len(figure.axes) == 3 * 12
    found = boxes(figure)
    assert_apart(found)
    # Nor do the panels' words reach into the next panel.
    every = [box for texts in found for _, box in texts]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 + 1 for box in every)


def test_names_in_the_pages_panels_never_overlap(many):
    _, summary = many
    for arm in [*summary.arms][:4]:
        for chart in ("d1", "gap", "revision"):
            assert_apart(boxes(panel_figure(summary, CHARTS[chart], arm, "in_domain")))


def test_words_of_the_answers_figure_never_overlap(many, planted):
    wide = {name: replace(arm, label="W $W_" * 20) for name, arm in planted[1].arms.items()}
    for summary in (many[1], planted[1], replace(planted[1], arms=wide)):
        assert_apart(boxes(forest_figure(summary)))
        for facet in facets(summary):
            figure = facet_figure(facet)
            (texts,) = boxes(figure)
            assert_apart([texts])
            assert all(box.x1 <= figure.bbox.x1 for _, box in texts)


class Structure(HTMLParser):
    """Checks that tags close in order; collects headings, targets of labels, and images."""

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.ids, self.labels, self.unnamed = [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(tag[1]))
        self.ids += [about["id"]] if "id" in about else []
        self.labels += [about["aria-labelledby"]] if "aria-labelledby" in about else []
        named = about.get("aria-label")
        if not named and (tag == "figure" or about.get("role") or "tabindex" in about):
            self.unnamed.append((tag, attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_of_many_arms_has_a_sound_structure(page):
    text = page.read_text(encoding="utf-8")
    found = Structure(text)
    assert found.headings[:2] == [1, 2] and found.headings.count(1) == 1
    assert all(deeper - level <= 1 for level, deeper in pairwise(found.headings))
    assert len(found.ids) == len(set(found.ids)) and set(found.labels) <= set(found.ids)
    # The main part takes the focus of the skip link and needs no name.
    assert [tag for tag, _ in found.unnamed] == ["main"]
    assert 'class="skip" href="#content"' in text and 'id="glossary"' in text
    # Twelve arms are rows of a table, not sentences.
    assert text.count("<li>") < 60


def test_the_pages_numbers_are_the_summarys(planted):
    run, summary = planted
    text = write_report(run, summary).read_text(encoding="utf-8")
    for arm in summary.arms:
        for domain in summary.domains:
            placement = summary.placed(arm, domain).placement
            for estimate in (placement.total, placement.prompt, placement.gap):
                assert percent(estimate, signed=True, digits=1) in text
            for metric in ("d1_cot", "d1_prompt"):
                point = summary.last(arm, domain).metrics[metric]
                assert percent(point) in text and percent(point, digits=1) in text
    for facet, domain in zip(facets(summary), summary.domains, strict=True):
        for row, arm in zip(facet.rows, summary.arms, strict=True):
            placement = summary.placed(arm, domain).placement
            assert row.estimates == {"cot": placement.total, "prompt": placement.prompt}


@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium")
def test_the_page_fits_a_phone_and_works_by_keys(page):
    address = page.as_uri()
    with Browser() as browser:
        for width, dark in ((1400, False), (390, True)):
            page = browser.page(width, 844, dark=dark)
            page.open(address, "document.readyState === 'complete'")
            assert page.run("document.documentElement.scrollWidth") == width
            ground = page.run("getComputedStyle(document.body).backgroundColor")
            assert (ground == "rgb(255, 255, 255)") != dark
            page.key("Tab")
            assert page.run("document.activeElement.className") == "skip"
            page.key("Enter")
            assert page.run("location.hash") == "#content"
            # Whatever scrolls sideways can be reached by keys.
            assert (
                page.run(
                    "[...document.querySelectorAll('*')].filter((each) => each.scrollWidth > "
                    "each.clientWidth + 1 && getComputedStyle(each).overflowX === 'auto' "
                    "&& each.tabIndex < 0).length"
                )
                == 0
            )
            # On a phone tables do not scroll: each cell is a line with the name of its column.
            cells = "[...document.querySelectorAll('.stack tbody td')]"
            named = f"{cells}.filter((each) => each.dataset.label).length"
            assert page.run(named) == page.run(f"{cells}.length") > 0
            shown = page.run(f"getComputedStyle({cells}[0], '::before').content")
            if width == 390:
                opened = (
                    "document.querySelectorAll('details').forEach((one) => { one.open = true; })"
                )
                page.run(opened)
                assert page.run("document.documentElement.scrollWidth") == width
                label = page.run(f"{cells}[0].dataset.label")
                assert shown == f'"{label}"'
                wide = f"{cells}.filter((each) => each.getBoundingClientRect().right > {width})"
                assert page.run(f"{wide}.length") == 0
            else:
                assert shown == "none"
            assert page.problems == []
            assert all(url.startswith(("file:", "about:")) for url in page.requests)


# ---- the matrix


def with_pilot(summary, domain, metric, rate, games):
    """Return the summary with another rate of the base, and so many games everywhere."""
    points = []
    for point in summary.points:
        if point.domain == domain:
            own = point.metrics[metric]
            value = rate if point.checkpoint == 0 else own.value
            changed = replace(own, value=value, low=0.0, high=1.0, games=games)
            point = replace(point, metrics=point.metrics | {metric: changed})
        points.append(point)
    return replace(summary, points=tuple(points))


@pytest.mark.parametrize(
    ("rate", "games", "marks"),
    [
        (0.1, 60, []),
        (0.9, 60, []),
        (0.099, 60, ["outside 10 to 90 %"]),
        (0.901, 60, ["outside 10 to 90 %"]),
        (0.5, 59, ["59 games, fewer than 60"]),
        (0.0, 12, ["outside 10 to 90 %", "12 games, fewer than 60"]),
    ],
)
def test_cells_that_say_too_little_are_marked_and_have_no_verdict(planted, rate, games, marks):
    _, whole = planted
    # Every arm gained by its CoT action alone, whatever the base's rate is said to be.
    placed = tuple(
        replace(row, placement=replace(row.placement, verdict=Verdict.ADVANTAGE))
        for row in whole.placements
    )
    whole = replace(whole, placements=placed)
    summary = with_pilot(whole, "ood_rooms", "d1_cot", rate, games)
    table = next(table for table in matrix(summary).tables if "D1" in table.title)
    column = table.columns.index("Out-of-domain (rooms), CoT action")
    for row in table.rows:
        cell = row.cells[column]
        assert bool(cell.mark) == bool(marks) and all(mark in cell.mark for mark in marks)
        assert f"{games} games" in cell.behind and cell.text.endswith("[0, 100]")
        assert not (cell.mark and cell.note), "no change is read from it"
    # All of a column say the same, so its heading says it once.
    assert bool(table.marks[column]) == bool(marks)
    html = str(load_template(PARTS).module.table(table, "the matrix"))
    assert html.count("not interpreted: ") == sum(map(bool, table.marks)) <= len(table.columns)
    for arm in summary.arms:
        reason = not_interpreted(summary, arm, "ood_rooms", "d1_cot")
        placed = summary.placed(arm, "ood_rooms")
        assert (verdict_of(summary, placed) == NOT_INTERPRETED) == bool(marks)
        cell, *_, p, _ = primary_row(summary, placed).cells
        assert (reason.lower() in cell.note.lower()) and cell.sure == (not marks)
        assert (p == "–") or not marks
        # In-domain the family decides alone.
        assert verdict_of(summary, summary.placed(arm, "in_domain")) == Verdict.ADVANTAGE
    assert ("too little to interpret" in answer(summary)[2]) == bool(marks)
    shown = {row.verdict for row in facets(summary)[1].rows}
    assert all(text.startswith("Not interpreted") == bool(marks) for text in shown)


def test_a_reason_that_a_column_does_not_share_stands_in_its_cell():
    shared, own = Shown("1", mark="12 games"), Shown("2", mark="not measured")
    rows = (
        SectionRow("In-domain", ()),
        SectionRow("base", (shared, own, "3", shared)),
        SectionRow("named", (shared, shared, "4", Shown("5"))),
    )
    table = SectionTable("", ("a", "b", "c", "d"), rows)
    assert table.marks == ("12 games", "", "", "")
    head, _, body = str(load_template(PARTS).module.table(table, "x")).partition("</thead>")
    assert head.count("not interpreted: 12 games") == 1
    assert [body.count(f"not interpreted: {why}") for why in ("12 games", "not measured")] == [2, 1]
    assert '<th scope="rowgroup" colspan="5"><bdi>In-domain</bdi>' in body


def test_the_matrix_has_every_arm_by_every_domain(planted):
    _, summary = planted
    about = {
        "arms": {"named": {}, "hybrid": {"trajectories": "own/set.jsonl"}, "direct": {}},
        "config": {"task_types": {"in_domain": ["look", "pick"]}},
        "games": {"ood_rooms": {"split": "ood_rooms", "held_out": "longer rooms"}, "hash": "g"},
    }
    section = matrix(replace(summary, run=summary.run | about))
    (table,) = section.tables  # no episodes were played
    assert [row.label for row in table.rows] == ["base (the pilot)", *summary.arms]
    assert len(table.columns) == 2 * len(summary.domains)
    assert [row.note for row in table.rows] == [
        "",
        "look, pick; held out: rooms",
        "episodes of set.jsonl",
        "look, pick; held out: rooms",
    ]
    assert any("held out: longer rooms" in note for note in section.notes)
    assert matrix(summary).sentences == ()


def test_the_matrix_says_which_task_types_are_those_of_an_arms_training(planted):
    _, summary = planted
    arms = dict(summary.arms)
    name = list(arms)[1]
    arms[name] = replace(arms[name], recipe={"task_types": ["heat", "look"]})
    about = {
        "config": {"task_types": {"in_domain": ["look", "pick"]}},
        "games": {
            "in_domain": {"task_types": ["look", "pick"]},
            "ood_rooms": {"task_types": ["cool"]},
        },
    }
    summary = replace(summary, run=summary.run | about, arms=arms)
    (table,) = matrix(summary).tables
    base, *rows = table.rows
    assert not any("task types" in cell.behind for cell in base.cells)
    for arm, row in zip(summary.arms, rows, strict=True):
        seen = [cell.behind.rpartition("; ")[2] for cell in row.cells[::2]]
        first = "1 of 2 task types" if arm == name else "task types"
        assert seen == [f"{first} of its training", "new task types"]
        assert row.note.startswith("heat, look" if arm == name else "look, pick")


def test_the_matrix_of_many_domains_has_a_table_for_each_kind_of_action(planted):
    _, summary = planted
    domains = [f"ood_{number}" for number in range(4)]
    points = [
        replace(point, domain=domain)
        for point in summary.points
        if point.domain == "in_domain"
        for domain in domains
    ]
    whole = replace(summary, points=tuple(points), domains=tuple(domains))
    tables = matrix(whole).tables
    assert len(tables) == 2
    for table, kind in zip(tables, ("CoT action", "prompt action"), strict=True):
        assert table.title.endswith(f"(D1), in percent: {kind}")
        assert [head.rpartition(", ")[2] for head in table.columns] == [kind] * 4
        assert all(len(row.cells) == 4 for row in table.rows)


def test_tables_of_verdicts_hold_each_arm_once(planted):
    _, summary = planted
    tables = verdicts(summary).tables
    assert [len(table.rows) for table in tables] == [3, 3]
    assert tables[0].title == "In-domain, by agreement with the expert (D1)"
