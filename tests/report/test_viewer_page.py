"""The viewer in headless Chromium: keys, mouse, links, widths, and text that wants to run."""

import json

import pytest

from cotjax.bench.browser import Browser, find_chromium
from cotjax.bench.viewer import seconds_to_open, write_empty, write_made_up
from cotjax.diagnostics.attention import Attended, AttentionRow
from cotjax.diagnostics.probe_rows import ProbeHeading
from cotjax.report.viewer.make import address, make_viewer
from cotjax.rollout.record import read_record, record_files

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="needs Chromium (Debian: apt-get install chromium)"
)
READY = "document.documentElement?.dataset.ready"
NASTY = (
    "</script><script>document.title='ran'</script><img src=http://x.y/z onerror=alert(2)>"
    "<svg onload=alert(3)> {{ 7*7 }} \u202e gnp.exe \x1b[2J \u0000"
)
SIZES = [(1400, 900), (390, 844)]


@pytest.fixture(scope="module")
def browser():
    with Browser() as running:
        yield running


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """54 episodes of 5 arms; every third step's thought has a rare word."""
    run = tmp_path_factory.mktemp("viewer") / "run"
    run.mkdir()
    write_made_up(run, 54, steps=4)
    path = record_files(run / "records")[30]
    record = json.loads(path.read_text())
    record["steps"][2]["prompt"]["text"] += " zebra"
    record["steps"][2]["prompt"]["action"] = "ride the zebra"
    path.write_text(json.dumps(record))
    return make_viewer([run], run / "viewer").index, run


@pytest.fixture
def opened(browser, made_up):
    pages = []

    def open_page(size=(1400, 900), hash="", index=None, **options):
        page = browser.page(*size, **options)
        page.open((index or made_up[0]).as_uri() + hash, READY)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        assert page.problems == []
        assert all(url.startswith(("file:", "about:")) for url in page.requests)
        page.send("Page.close")


def chosen(page):
    """Return what is open: the address without its "#", and the number of the chosen step."""
    return page.run("decodeURIComponent(location.hash.slice(1))"), page.run(
        "document.querySelector('.step.chosen')?.id"
    )


def count(page):
    return int(page.run("document.getElementById('count').textContent.split(' ')[0]"))


def press(page, *keys):
    for key in keys:
        before = page.run("location.hash")
        page.key(key)
        if key in "np":
            page.wait(f"location.hash !== {json.dumps(before)}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_without_a_server_and_does_not_scroll_sideways(opened, size, dark):
    page = opened(size, dark=dark)
    assert page.run("document.querySelectorAll('.step').length") == 4
    assert page.run("document.querySelectorAll('#list .row').length") < 54, "a part of the rows"
    page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.run("viewer.shadeBy('logprob')")
    page.wait("document.querySelectorAll('.token').length")
    assert page.run("document.documentElement.scrollWidth") == size[0]
    light = page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light != dark
    page.click("#theme")
    page.click("#theme")
    assert page.run("document.documentElement.dataset.theme") == "dark"
    assert page.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    page.run("localStorage.clear()")


def test_keys(opened):
    page = opened()
    first, step = chosen(page)
    assert step == "step-0" and first.endswith("/0/0")
    press(page, "j", "j", "k", "j")
    assert chosen(page) == (first[:-1] + "2", "step-2")
    assert page.run("document.activeElement.id") == "step-2"
    press(page, "j", "j", "j")
    assert chosen(page)[1] == "step-3", "the last"
    press(page, "n")
    second, step = chosen(page)
    assert (second != first, step) == (True, "step-0")
    press(page, "p")
    assert chosen(page) == (first, "step-0")
    press(page, "t", "t")
    assert page.run("document.getElementById('shade').value") == "role"
    assert page.run("document.querySelectorAll('.token.role-ACTION').length") > 0
    press(page, "/")
    assert page.run("document.activeElement.id") == "query"
    page.write("made-up-0001")
    page.wait("document.getElementById('count').textContent.startsWith('27 of')")
    press(page, "j")
    assert page.run("document.getElementById('query').value").endswith("1j"), "a letter, no key"
    press(page, "Escape", "f")
    assert page.run("document.activeElement.tagName") == "SELECT"
    press(page, "Escape", "?")
    assert page.run("document.getElementById('help').open")
    press(page, "Escape")
    assert not page.run("document.getElementById('help').open")
    press(page, "c")
    assert page.run("document.activeElement.id") == "compare"


def test_the_list_follows_arrows_and_the_mouse(opened):
    page = opened()
    page.run("document.getElementById('list').focus()")
    before = chosen(page)[0]
    page.key("ArrowDown")
    page.wait(f"decodeURIComponent(location.hash.slice(1)) !== {json.dumps(before)}")
    page.key("End")
    page.wait("document.querySelector('.row[aria-selected=true]')?.ariaPosInSet === '54'")
    active = page.run("document.getElementById('list').getAttribute('aria-activedescendant')")
    assert page.run(f"document.getElementById('{active}').ariaSelected") == "true"
    page.click("#list .row[aria-posinset='53']")
    page.wait("document.querySelector('.row[aria-selected=true]')?.ariaPosInSet === '53'")


def test_filters_show_the_episodes_that_have_it(opened, made_up):
    page = opened()
    total = len(record_files(made_up[1] / "records"))
    assert count(page) == total
    for mark in ("revised", "helpful", "won", "failed", "not_accepted"):
        said = int(page.run(f"document.getElementById('count-{mark}').textContent"))
        assert 0 < said < total
        page.click(f"#mark-{mark}")
        assert count(page) == said
        assert page.run(f"viewer.rows.every((row) => viewer.marksOf(row).includes('{mark}'))")
        page.click(f"#mark-{mark}")
    page.run(
        "(() => { const select = document.getElementById('facet-label'); select.value = '2';"
        "select.dispatchEvent(new Event('change')); })()"
    )
    arms = page.run("[...new Set(viewer.rows.map((row) => viewer.about(row).arm))]")
    assert len(arms) == 1 and 0 < count(page) < total
    page.click("#clear")
    assert count(page) == total


def test_search_finds_texts_of_steps_and_opens_the_step(opened, made_up):
    page = opened()
    press(page, "/")
    page.write("ZEBRA")
    page.wait("document.getElementById('count').textContent.startsWith('0 of')")
    press(page, "Enter")
    page.wait("document.getElementById('count').textContent.startsWith('1 of')")
    record = read_record(record_files(made_up[1] / "records")[30])
    page.wait("document.querySelector('.step.chosen')?.id === 'step-2'")
    assert page.run("location.hash") == address("run", record, 2)
    assert "ride the zebra" in page.run("document.querySelector('.step.chosen').textContent")


@pytest.mark.parametrize("size", SIZES)
def test_a_link_opens_its_step(opened, made_up, size):
    record = read_record(record_files(made_up[1] / "records")[20])
    page = opened(size, address("run", record, 3))
    assert chosen(page)[1] == "step-3"
    top, height = page.run(
        "[document.getElementById('step-3').getBoundingClientRect().top, innerHeight]"
    )
    assert -1 <= top < height, "in sight"
    assert page.run("document.querySelector('#step-2 a.link').hash") == address("run", record, 2)
    page.click("#step-3 a.link")
    page.run(f"location.hash = {json.dumps(address('run', record, 1))}")
    page.wait("document.querySelector('.step.chosen')?.id === 'step-1'")
    page.run("location.hash = '#nothing/of/this/is/there/0/0'")
    page.wait("!document.getElementById('problem').hidden")


def test_two_arms_stand_side_by_side_on_the_same_state(opened, made_up):
    records = map(read_record, record_files(made_up[1] / "records"))
    one, other = [
        record
        for record in records
        if record.driver == "reference" and record.game.id == "made-up-0000"
        and record.arm in ("named", "direct") and record.checkpoint == 60
    ]  # fmt: skip
    page = opened(hash=address("run", one, 1))
    option = page.run(
        "[...document.getElementById('compare').options]"
        f".find((each) => each.textContent === '{other.arm}, step 60').value"
    )
    page.run(
        f"(() => {{ const select = document.getElementById('compare'); select.value = '{option}';"
        "select.dispatchEvent(new Event('change')); })()"
    )
    page.wait("document.querySelector('.sides.two')")
    assert page.run("location.hash") == address("run", one, 1) + f"/with/run/{other.arm}/60"
    sides = page.run(
        "[...document.querySelectorAll('#step-1 .side')].map((side) =>"
        "[side.querySelector('h4').textContent, side.querySelector('.kind-cot + dd').textContent])"
    )
    for (title, action), record in zip(sides, (one, other), strict=True):
        assert title.startswith(f"{record.arm}, step 60")
        assert action.startswith(record.steps[1].cot.action)
    assert page.run("document.querySelectorAll('#step-1 > .actions').length") == 1, "one state"
    differ = one.steps[1].cot.action != other.steps[1].cot.action
    assert ("differs" in sides[0][1]) == differ
    again = opened(hash=page.run("location.hash"))
    assert again.run("document.querySelectorAll('.sides.two').length") == 4
    press(page, "n")
    page.wait("document.querySelector('.sides.two')")


def test_played_episodes_part_where_their_actions_differ(opened, episode, tmp_path):
    for arm, action in (("sft", "look"), ("reduced", "go")):
        episode(tmp_path, "g", [("look", "look"), (action, "look"), ("look", "look")], arm=arm)
    index = make_viewer([tmp_path], tmp_path / "viewer").index
    run = tmp_path.name
    page = opened(index=index, hash=f"#{run}/sft/10/cot/g/0/0/with/{run}/reduced/10")
    shared = page.run(
        "[...document.querySelectorAll('.step')]"
        ".map((step) => step.querySelectorAll(':scope > .actions').length)"
    )
    assert shared == [1, 1, 0]
    assert "part here" in page.run("document.getElementById('step-2').textContent")


def test_tokens_say_role_weight_and_probability(opened, made_up):
    record = next(
        record
        for record in map(read_record, record_files(made_up[1] / "records"))
        if record.arm == "named" and record.driver == "cot"
    )
    page = opened(hash=address("run", record, 0))
    page.run("viewer.shadeBy('weight')")
    titles = page.run(
        "[...document.querySelectorAll('#step-0 .tokens')[0].children].map((t) => t.title)"
    )
    assert len(titles) == len(record.steps[0].cot.ids)
    assert "reasoning, loss weight 1, log-probability" in titles[0]
    assert any("action, loss weight 0.7," in title for title in titles)
    page.run("document.querySelector('#step-0 .tokens').focus()")
    press(page, "ArrowRight", "ArrowRight")
    assert "token 2" in page.run("document.querySelector('#step-0 .token-said').textContent")


def test_shares_of_attention_are_bars_and_shade_tokens(opened, tmp_path):
    write_made_up(tmp_path, 9, steps=1)
    record = next(
        record
        for record in map(read_record, record_files(tmp_path / "records"))
        if record.driver == "cot" and record.arm == "named"
    )
    share = {"observation": 0.5, "reasoning": 0.4, "tags": 0.1}
    uniform = {"observation": 0.7, "reasoning": 0.1, "tags": 0.2}
    cot = Attended(
        nats=0.5, tokens=4, length=80, uniform=uniform, share=share,
        prompt_by_layer=(0.5,), reasoning_by_layer=(0.4,),
    )  # fmt: skip
    row = AttentionRow(
        driver="cot", game=record.game.id, domain=record.domain, sample=0, turn=0,
        skipped=None, cot=cot, prompt=None, masked=None, blocked=None,
    )  # fmt: skip
    heading = ProbeHeading(
        probe="attention", arm="named", checkpoint=record.checkpoint, checkpoint_hash="",
        games_hash="", settings={}, states=1,
    )  # fmt: skip
    path = tmp_path / "probes" / "attention" / "named" / f"{record.checkpoint}.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(heading.model_dump_json() + "\n" + row.model_dump_json() + "\n")
    index = make_viewer([tmp_path], tmp_path / "viewer").index
    page = opened(index=index, hash=address(tmp_path.name, record))
    page.run("viewer.shadeBy('attention')")
    page.run(
        "document.querySelectorAll('#step-0 details').forEach((each) => { each.open = true; })"
    )
    page.wait("document.querySelector('.share-bar')")
    said = page.run("[...document.querySelectorAll('.share-bar')].map((bar) => bar.ariaLabel)")
    assert said[0] == "share: observation 50.0 %, reasoning 40.0 %, tags 10.0 %"
    colours = page.run(
        "[...document.querySelectorAll('#step-0 .tokens')[0].children]"
        ".map((token) => [token.title, token.style.backgroundColor])"
    )
    reasoning, tags = (
        {colour for title, colour in colours if f", {role}," in title}
        for role in ("reasoning", "action open")
    )
    # 0.7 of density / (density + 2), in percent: four times its share, and half of it.
    assert [each.pop().split("var(--hot) ")[1][:3] for each in (reasoning, tags)] == ["47%", "14%"]


@pytest.mark.parametrize("size", SIZES)
def test_texts_of_models_and_files_never_run(opened, tmp_path, episode, size):
    meta = {
        "title": NASTY,
        "arms": {"sft": {"label": NASTY, "fraction": 0.0}, "reduced": {"label": "x" * 6000}},
    }
    (tmp_path / "run.json").write_text(json.dumps(meta))
    for game in ("g", NASTY):
        for arm in ("sft", "reduced"):
            path = episode(
                tmp_path, game, [(NASTY, "look", NASTY)] * 2, driver="reference", arm=arm
            )
            record = json.loads(path.read_text())
            for step in record["steps"]:
                step["observation"] = NASTY * 40
                step["admissible_commands"] = [NASTY, "y" * 6000]
                step["prompt"] |= {"valid": False, "action": None, "problem": NASTY, "text": NASTY}
                step["cot"]["thought"] = NASTY
            record |= {
                "task": NASTY, "domain": NASTY, "elicitation": {NASTY: NASTY},
                "env_error": NASTY, "env_faults": [NASTY], "final_observation": NASTY,
            }  # fmt: skip
            record["game"]["task_type"] = NASTY
            path.write_text(json.dumps(record))
    index = make_viewer([tmp_path], tmp_path / "viewer").index
    page = opened(size, index=index)
    page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.run("viewer.compare(viewer.about(viewer.rows.find((row) => row !== viewer.current.row)))")
    scripts = page.run("[...document.scripts].map((each) => each.getAttribute('src'))")
    assert all(source and source.endswith(".js") and "/x" not in source for source in scripts)
    elements = "img, svg, iframe, object, embed, [onload], [onerror], [onclick], [style*=url]"
    assert page.run(f"document.querySelectorAll('{elements}').length") == 0
    assert page.run("document.title").startswith("Episodes of </script><script>")
    text = page.run("document.body.textContent")
    assert text.count("<script>document.title='ran'</script>") > 10
    assert not {"\u202e", "\x1b", "\x00"} & set(text)
    assert "\\u202e" in text and "\\x1b[2J" in text
    attributes = page.run(
        "[...document.querySelectorAll('*')].flatMap((each) =>"
        "[...each.attributes].map((one) => one.value)).join('')"
    )
    assert not {"\u202e", "\x1b", "\x00"} & set(attributes.replace(page.run("location.hash"), ""))
    assert page.run("document.documentElement.scrollWidth") == size[0]


def test_the_benchmark_times_the_viewer_and_an_empty_page(browser, made_up, tmp_path):
    empty = seconds_to_open(browser, write_empty(tmp_path))
    viewer = seconds_to_open(browser, made_up[0])
    assert 0 < empty["ready"] < viewer["listed"] <= viewer["ready"]
    assert 0 < empty["busy"] < viewer["busy"]
