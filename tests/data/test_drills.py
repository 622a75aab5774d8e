import re

from cotjax.data.drills import drills
from cotjax.data.trajectories import read_trajectories, write_trajectories

THINGS = ("pen", "mug", "book", "apple", "cd", "egg", "fork", "plate", "spoon", "cup", "pot")
PLACES = ("desk", "shelf", "drawer", "fridge", "sofa", "bed", "cabinet", "safe", "toilet", "cart")


def _drills(count=50, seed=0):
    return list(drills(count, seed, things=THINGS, places=PLACES))


def test_the_same_seed_gives_the_same_drills_and_more_only_adds(tmp_path):
    assert _drills(20) == _drills(50)[:20] != _drills(20, seed=1)
    write_trajectories(tmp_path / "d.jsonl", _drills())
    assert list(read_trajectories(tmp_path / "d.jsonl")) == _drills()


def test_what_a_thought_says_is_what_the_list_shows():
    found = absent = 0
    for drill in _drills():
        wanted = re.match(r"put a (\w+) in", drill.task)[1]
        for step in drill.steps[1:]:
            place = re.match(r"You arrive at (\w+ \d+)\.", step.observation)[1]
            shown = set(re.findall(r"\ba (\w+ \d+)", step.observation))
            told = set(re.findall(r"\w+ \d+", step.thought.split(". ")[1])) - {place}
            assert told and told <= shown
            here = [name for name in shown if name.startswith(f"{wanted} ")]
            assert len(here) <= 1
            if here:
                assert step.action == f"take {here[0]} from {place}" and f"no {wanted}" not in step.thought
            else:
                assert step.action.startswith("go to ") and f"no {wanted}" in step.thought
            found, absent = found + bool(here), absent + (not here)
    assert min(found, absent) > 50
