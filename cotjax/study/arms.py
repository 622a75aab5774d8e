"""The arms of a study: what each is trained on, with the config's values where it names none.

Where the config names seeds, an arm has a member for each of them (`cotjax.runtime.members`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cotjax.config import ARM_FIELDS, own_files
from cotjax.config.preference import JUDGED
from cotjax.data.tokens import GROWING
from cotjax.envs.worlds import load_world
from cotjax.errors import UsageError
from cotjax.masking import NORMALIZERS, Dropping, MaskError
from cotjax.objectives.named import PREFERENCES, REINFORCED, SUPERVISED, spec_of
from cotjax.objectives.objective import Spec
from cotjax.runtime.members import arm_and_seed, members_of, natural
from cotjax.study.starts import check_starts, start_of

# Fields that decide an arm's examples and their order; the others decide what is dropped.
_OF_DATA = (
    *("thoughts", "trajectories", "task_types", "direct_share", "objective", "rejected", "seed"),
)
_SEED = re.compile(r"(?P<cell>.*?\w)[-_.]*(?:seed|s)?[-_.]?\d+")
# Kind of the thoughts, share of direct trajectories, task types.
Data = tuple[str, float | None, tuple[str, ...]]


@dataclass(frozen=True)
class Arm:
    """One arm with its values resolved.

    Attributes:
      label: shown in the report.
      fraction, control: what it drops, as in the config.
      thoughts: kind of the thoughts that it is trained on; "" where data.trajectories has its own,
        and the name of `trajectories` where that has.
      trajectories: the file that it alone names; "" where data are those of the config.
      task_types: those that it is trained on; (): those that the config says.
      direct_share: share of its trajectories in the direct form; None where it plays what it
        learns from, and has none.
      objective: what it minimises: SUPERVISED, one of PREFERENCES or of REINFORCED.
      start: the checkpoint that it starts from, as "short@30"; "": the base.
      rejected: file or folder with the rejected side of its pairs; "": other states; JUDGED: those
        that the environment says are worse.
      seed: of its data order, masking and adapters.
      cell: the arm in the report: a name that members of an arm share, or, where the config names
        no seeds, arms that differ by seed and label alone.
    """

    label: str
    fraction: float
    control: str
    thoughts: str
    trajectories: str
    task_types: tuple[str, ...]
    direct_share: float | None
    objective: str
    start: str
    rejected: str
    seed: int
    cell: str

    @property
    def data(self) -> Data:
        """Return what its dataset depends on; arms with the same share one."""
        return self.thoughts, self.direct_share, self.task_types

    @property
    def reinforced(self) -> bool:
        """Whether it plays what it learns from; then it has no dataset."""
        return self.objective in REINFORCED


def arms_of(config: ConfigDict) -> dict[str, Arm]:
    """Return the arms of a config in the natural order of names: all their members, by name."""
    values = {
        member: _resolved(config, member)
        for arm in sorted(config.arms, key=natural)
        for member in members_of(arm, config.seeds)
    }
    # Older studies wrote the seeds of an arm as arms.
    cells = {each: arm_and_seed(each)[0] for each in values} if config.seeds else _cells(values)
    shown = ("label", "fraction", "control", "start", *_OF_DATA)
    return {
        member: Arm(**{name: own[name] for name in shown}, cell=cells[member])
        for member, own in values.items()
    }


def member_named(config: ConfigDict, name: str) -> str:
    """Return the member of this name, or the first member of the arm of this name.

    Raises UsageError where there is neither, or it has no data, for it plays what it learns from.
    """
    members = arms_of(config)
    of_arm = [member for member in members if name in (member, arm_and_seed(member)[0])]
    if not of_arm:
        raise UsageError(f"--arm is {name!r}; there are {', '.join(members)}")
    if members[of_arm[0]].reinforced:
        raise UsageError(f"--arm is {name!r}, which plays what it learns from: it has no data")
    return of_arm[0]


def collects(config: ConfigDict) -> bool:
    """Return whether an arm is trained on trajectories that the study collects."""
    on_data = [arm for arm in config.arms if not is_reinforced(config, arm)]
    every_arm_has_a_file = len(own_files(config)) == len(on_data) and len(config.arms) > 0
    return not (config.data.trajectories or every_arm_has_a_file)


def is_reinforced(config: ConfigDict, arm: str) -> bool:
    """Return whether an arm's `objective` says that it plays what it learns from."""
    own = config.arms[arm]
    return isinstance(own, ConfigDict) and own.get("objective") in REINFORCED


def reinforced_arms(config: ConfigDict) -> list[str]:
    """Return the arms of a config that play what they learn from."""
    return [arm for arm in config.arms if is_reinforced(config, arm)]


def plays_to_train(config: ConfigDict) -> bool:
    """Return whether training games are played: to collect or judge responses, or by an arm."""
    judged = any(own.get("rejected") == JUDGED for own in config.arms.values())
    return collects(config) or bool(reinforced_arms(config)) or judged


def given_files(config: ConfigDict) -> tuple[str, ...]:
    """Return the trajectory files that the config and its arms name, each once."""
    files = (config.data.trajectories, *own_files(config).values())
    return tuple(dict.fromkeys(filter(None, files)))


def dropping_of(config: ConfigDict, member: str) -> Dropping:
    """Return what an arm trains on and drops. Raises UsageError for a setting that is not valid.

    `member`: its name, or that of one of its members.
    """
    arm, _ = arm_and_seed(member)
    values, own = dict(config.masking), dict(config.arms[arm])
    normalizer = values.pop("normalizer")
    if normalizer not in NORMALIZERS:
        raise UsageError(
            f"masking.normalizer: unknown {normalizer!r}; there are {', '.join(NORMALIZERS)}"
        )
    unknown = sorted(own.keys() - ARM_FIELDS.keys())
    if unknown:
        raise UsageError(
            f"arms.{arm}: unknown field {unknown[0]!r}; there are {', '.join(ARM_FIELDS)}"
        )
    for name in ("label", "advantage", "start", "steps", "learning_rate", *_OF_DATA):
        own.pop(name, None)
    try:
        return Dropping.of(seed=_resolved(config, member)["seed"], **(values | own))
    except MaskError as error:
        raise UsageError(f"arms.{arm}: masking: {error}") from None


def objective_of(config: ConfigDict, arm: str) -> Spec | None:
    """Return the settings of an arm's objective on data; None for the supervised one.

    None, too, where an arm plays what it learns from. Raises UsageError.
    """
    name = _resolved(config, arm)["objective"]
    if name == SUPERVISED or name in REINFORCED:
        return None
    if name not in PREFERENCES:
        known = ", ".join((SUPERVISED, *PREFERENCES, *REINFORCED))
        raise UsageError(f"arms.{arm}.objective is {name!r}; there are {known}")
    settings = config.preference
    names = {"dpo": ("beta", "length_normalised", "nll"), "frodo": ("beta",)}.get(name, ())
    values = {field: settings[field] for field in names}
    return spec_of({"name": name, **values, **settings.get(name, {})})


def check_arms(config: ConfigDict) -> None:
    """Raise UsageError for an arm with an unknown field, or with a value that is not possible."""
    if not config.arms:
        raise UsageError("the config has no arms; give at least one, as configs/demo.py does")
    _check_seeds(config)
    for arm, own in config.arms.items():
        if not isinstance(own, ConfigDict):
            raise UsageError(f"arms.{arm} is {own!r}; give its fields: {', '.join(ARM_FIELDS)}")
        for name, usual in ARM_FIELDS.items():
            kinds = (int, float) if isinstance(usual, float) else type(usual)
            if not isinstance(own.get(name, usual), kinds):
                raise UsageError(
                    f"arms.{arm}.{name} is {own[name]!r}; it must be of type {type(usual).__name__}"
                )
        if own.get("fraction_steps", 0) < 0:
            raise UsageError(
                f"arms.{arm}.fraction_steps is {own.fraction_steps}; it must be at least 0"
            )
        _check_data(config, arm, own)
        _check_pairs(config, arm)
        dropping_of(config, arm)
    check_starts(config)


def _check_seeds(config: ConfigDict) -> None:
    seeds = tuple(config.seeds)
    if any(type(seed) is not int or seed < 0 for seed in seeds) or len({*seeds}) < len(seeds):
        raise UsageError(f"seeds is {seeds}; give integers of at least 0, each once, as in (0, 1)")
    for arm, own in config.arms.items():
        if "/" in arm:
            raise UsageError(f"arms: {arm!r} has a slash; name a folder")
        if seeds and isinstance(own, ConfigDict) and own.get("seed", -1) != -1:
            raise UsageError(
                f"arms.{arm}.seed is {own.seed}, but seeds {seeds} are those of every arm: remove "
                "one of the two fields"
            )


def check_thoughts(config: ConfigDict, kind: str, field: str) -> None:
    """Raise UsageError unless the config's world writes thoughts of this kind."""
    world = load_world(config.world)
    if kind not in world.thought_kinds:
        raise UsageError(
            f"{field} is {kind!r}; world {world.name!r} has {' and '.join(world.thought_kinds)}"
        )


def _check_data(config: ConfigDict, arm: str, own: ConfigDict) -> None:
    share = own.get("direct_share", -1.0)
    if share != -1.0 and not 0.0 <= share <= 1.0:
        raise UsageError(
            f"arms.{arm}.direct_share is {share}; it must be from 0 to 1, or -1 for "
            "data.direct_share"
        )
    if own.get("seed", -1) < -1:
        raise UsageError(
            f"arms.{arm}.seed is {own.seed}; it must be at least 0, or -1 for the config's seed"
        )
    _check_task_types(config, arm, tuple(own.get("task_types", ())))
    if file := own.get("trajectories"):
        if own.get("thoughts"):
            raise UsageError(
                f"arms.{arm}.thoughts is {own.thoughts!r}, but its trajectories, {file}, have "
                "their own thoughts: remove one of the two fields"
            )
        if config.prompt.examples:
            raise UsageError(
                f"arms.{arm}.trajectories is {file}, and prompt.examples {config.prompt.examples}: "
                "examples cannot be held out of another file; set prompt.examples to 0, or give "
                "all arms one file as data.trajectories"
            )
    if not own.get("thoughts"):
        return
    if config.data.trajectories:
        raise UsageError(
            f"arms.{arm}.thoughts is {own.thoughts!r}, but {config.data.trajectories} has its own "
            "thoughts: remove the field, or data.trajectories to collect scripted ones"
        )
    check_thoughts(config, own.thoughts, f"arms.{arm}.thoughts")


def _check_task_types(config: ConfigDict, arm: str, types: tuple[str, ...]) -> None:
    given = config.data.trajectories or config.arms[arm].get("trajectories")
    there = load_world(config.world).task_types if given else config.task_types.collect
    where = f"world {config.world!r} has" if given else "task_types.collect has"
    for each in types:
        if each not in there:
            raise UsageError(
                f"arms.{arm}.task_types has {each!r}; {where} {', '.join(there) or 'none'}"
            )


def _check_pairs(config: ConfigDict, arm: str) -> None:
    own = _resolved(config, arm)
    form, rejected = config.preference.pairs, own["rejected"]
    if objective_of(config, arm) is None:
        if rejected:
            raise UsageError(
                f"arms.{arm}.rejected is {rejected}, but its objective is {own['objective']!r}; "
                f"remove it, or set arms.{arm}.objective to one of {', '.join(PREFERENCES)}"
            )
        return
    if form not in ("step", "trajectory"):
        raise UsageError(f"preference.pairs is {form!r}; there are step, trajectory")
    without_episodes = rejected in ("", JUDGED)
    if form == "trajectory" and (own["objective"] != "dpo" or without_episodes):
        raise UsageError(
            f"preference.pairs is 'trajectory', and arms.{arm} has the objective "
            f"{own['objective']!r} and rejected {rejected!r}: pairs of episodes are for 'dpo', and "
            "need a file or records of lost ones"
        )
    world = load_world(config.world)
    if rejected == JUDGED and "expert" not in world.agents:
        raise UsageError(
            f"arms.{arm}.rejected is {JUDGED!r}, where the world's expert finishes after each "
            f"action, and world {world.name!r} has none: give a file or folder, or leave it empty"
        )
    if rejected not in ("", JUDGED) and not Path(rejected).exists():
        raise UsageError(
            f"arms.{arm}.rejected: {rejected}: no such file or folder; give a trajectory file, or "
            "a folder of records"
        )
    if own["direct_share"]:
        raise UsageError(
            f"arms.{arm} has the objective {own['objective']!r} and direct_share "
            f"{own['direct_share']}; pairs are of reasoned responses: set it to 0"
        )
    if config.data.history or config.data.past_thoughts or config.data.layout == GROWING:
        raise UsageError(
            f"arms.{arm} has the objective {own['objective']!r}, whose prompts show all turns "
            "without thoughts: set data.history to 0, data.past_thoughts to False, data.layout to "
            "'trajectory'"
        )


def _resolved(config: ConfigDict, member: str) -> dict[str, Any]:
    """Return all fields of a member, each with the config's value where its arm names none."""
    arm, seed = arm_and_seed(member)
    own: dict[str, Any] = {**ARM_FIELDS, **config.arms[arm]}
    if seed is not None:
        own["seed"] = seed
    place = start_of(config, member)
    own["start"] = "" if place is None else str(place)
    if own["seed"] < 0:
        own["seed"] = config.seed
    if own["objective"] in REINFORCED:
        # It has no data.
        nothing = {"thoughts": "", "trajectories": "", "task_types": (), "direct_share": None}
        return own | nothing
    own["task_types"] = tuple(own["task_types"])
    if own["trajectories"] == config.data.trajectories:
        own["trajectories"] = ""
    if own["trajectories"]:
        own["thoughts"] = _name(own["trajectories"], config)
    elif not own["thoughts"]:
        own["thoughts"] = "" if config.data.trajectories else config.collect.thoughts
    if own["direct_share"] < 0:
        own["direct_share"] = config.data.direct_share
    return own


def _name(file: str, config: ConfigDict) -> str:
    """Return the name of a trajectory file; its path where that names another file or a kind."""
    name = Path(file).name
    others = {Path(other).name for other in given_files(config) if other != file}
    return file if name in others or name in load_world(config.world).thought_kinds else name


def _cells(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the cell of each arm.

    An arm alone in its cell names it. Several are named without the seed that ends each name, as
    "named" for "named-s0" and "named-s1", where that is one name of no other cell; else by the
    first of them.
    """
    together: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for arm, own in arms.items():
        same = {name: value for name, value in own.items() if name not in ("label", "seed")}
        together[tuple(sorted(same.items()))].append(arm)
    cells: dict[str, str] = {}
    for members in together.values():
        stems = {match["cell"] if (match := _SEED.fullmatch(arm)) else arm for arm in members}
        stem = stems.pop() if len(members) > 1 and len(stems) == 1 else members[0]
        name = members[0] if stem in cells.values() else stem
        cells |= dict.fromkeys(members, name)
    return {arm: cells[arm] for arm in arms}
