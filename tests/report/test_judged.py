"""The section on what judges say, from a summary."""

from cotjax.diagnostics.preference import Opinion, PreferenceRow
from cotjax.diagnostics.probe_rows import ProbeHeading
from cotjax.diagnostics.revisions import Ending, RevisionRow
from cotjax.probes.measuring import probe_path
from cotjax.report.judged import AGREEMENT, PLAN, PREFERENCE, REVISIONS, judged
from cotjax.report.summarize import summarize


def write_rows(run, probe, arm, step, rows):
    heading = ProbeHeading(
        probe=probe,
        arm=arm,
        checkpoint=step,
        checkpoint_hash=f"{arm} {step}",
        games_hash="g",
        settings={},
        states=len(rows),
    )
    path = probe_path(run, probe, arm, step)
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{each.model_dump_json()}\n" for each in (heading, *rows)))


def rows_of(helpful):
    """Twelve games of two expert states: this many games have a helpful revision, others none."""
    far, near = Ending(steps=5, unknown=None), Ending(steps=3, unknown=None)
    revisions, preferences = [], []
    for number in range(12):
        place = {"driver": "reference", "game": f"in_domain-{number}", "domain": "in_domain"}
        place |= {"sample": 0}
        revised = number < helpful
        for turn in range(2):
            prompt = "go" if revised and not turn else "look"
            revisions.append(
                RevisionRow(
                    **place,
                    turn=turn,
                    verdict="helpful" if prompt == "go" else "same",
                    cot="look",
                    prompt=prompt,
                    reference="look",
                    cot_ending=near if prompt == "go" else None,
                    prompt_ending=far if prompt == "go" else None,
                    reference_ending=near if prompt == "go" else None,
                    differs=None,
                )
            )
            said = ("cot", "cot") if prompt == "go" else ("tie", "tie")
            preferences.append(
                PreferenceRow(
                    **place,
                    turn=turn,
                    cot="look",
                    prompt=prompt,
                    opinions={
                        "environment": Opinion.of(*said),
                        "model": Opinion.of("cot", "prompt")
                        if prompt == "go"
                        else Opinion.of(*said),
                    },
                )
            )
    return revisions, preferences


def test_the_section_has_what_was_judged(study):
    for arm, step, helpful in (("base", 0, 2), ("sft", 10, 6)):
        revisions, preferences = rows_of(helpful)
        write_rows(study, "revisions", arm, step, revisions)
        write_rows(study, "preference", arm, step, preferences)
    section = judged(summarize(study))
    tables = {table.title: table for table in section.tables}
    assert list(tables) == [REVISIONS, PLAN, PREFERENCE, AGREEMENT]
    heading, *rows = tables[REVISIONS].rows
    assert (heading.label, heading.cells) == ("In-domain", ())
    assert [(row.label, row.note) for row in rows] == [
        ("base", "expert states"),
        ("standard SFT, step 10", "expert states"),
    ]
    cells = dict(zip(tables[REVISIONS].columns, rows[1].cells, strict=True))
    assert cells["CoT action better"].startswith("25 [") and cells["worse"].startswith("0 [")
    assert cells["steps saved a state"].startswith("+0.50 [")
    plan = dict(zip(tables[PLAN].columns, tables[PLAN].rows[2].cells, strict=True))
    assert plan["D1', CoT"].startswith("100 [") and plan["D1', prompt"].startswith("75 [")
    preference = {
        row.note: row.cells for row in tables[PREFERENCE].rows if row.label.startswith("standard")
    }
    won, lost, tie, gap, bias, none = preference["judge: environment"]
    assert (won[:4], lost[:3], tie[:4], gap[:5]) == ("25 [", "0 [", "75 [", "+25 [")
    assert bias.startswith("0 [") and none.startswith("0 [")
    model = preference["judge: model"]
    assert model[0].startswith("0 [") and model[4].startswith("100 [")
    (*_, agreement) = tables[AGREEMENT].rows
    assert agreement.note == "environment, model"
    assert agreement.cells[0].startswith("0 [")


def test_without_rows_there_is_no_table(study):
    assert judged(summarize(study)).tables == ()
