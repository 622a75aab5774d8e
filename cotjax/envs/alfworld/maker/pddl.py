"""Write a household as ALFWorld's files: the PDDL problem, the game, the trajectory's header."""

from __future__ import annotations

import json
import random

from cotjax.envs.alfworld.catalog import Catalog, Receptacle
from cotjax.envs.alfworld.maker.sample import Household, Item
from cotjax.envs.alfworld.older import older_command, older_grammar

_PREDICATES = {
    "Cleanable": "cleanable",
    "Coolable": "coolable",
    "Heatable": "heatable",
    "Sliceable": "sliceable",
}
# Types that the domain's actions name, so every problem must declare them.
_DOMAIN_OBJECT_TYPES = ("ButterKnife", "Knife")
_DOMAIN_RECEPTACLE_TYPES = ("Fridge", "Microwave", "SinkBasin")


def folder_name(household: Household) -> str:
    """Return ALFWorld's "<task>-<Obj>-<Mrecep>-<Recep>-<scene>"; a lamp is a <Recep> too."""
    goal = household.goal or household.toggle
    return f"{household.task_type}-{household.target}-None-{goal}-{household.floor_plan}"


def instruction(catalog: Catalog, household: Household, rng: random.Random) -> str:
    """Return one of ALFWorld's templates for the task type, filled in as ALFWorld does."""
    _, templates = catalog.goals[household.task_type]
    return rng.choice(templates).format(
        obj=household.target.lower(),
        recep=household.goal.lower(),
        toggle=household.toggle.lower(),
        mrecep="",
    )


def game_file(
    catalog: Catalog, problem: str, task: str, commands: list[str], older: bool = False
) -> str:
    """Return game.tw-pddl, a JSON object. Only solvable games are kept.

    `commands`: of a walkthrough in the present grammar. `older`: write the game in the older one.
    """
    grammar = catalog.grammar.replace("UNKNOWN GOAL", task)
    return _json(
        {
            "pddl_domain": catalog.domain,
            "grammar": older_grammar(grammar) if older else grammar,
            "pddl_problem": problem,
            "walkthrough": list(map(older_command, commands)) if older else commands,
            "solvable": True,
        }
    )


def trajectory_file(household: Household, trial: str, task: str) -> str:
    """Return traj_data.json, with the fields that ALFWorld's loaders and experts read."""
    return _json(
        {
            "task_id": trial,
            "task_type": household.task_type,
            "pddl_params": {
                "mrecep_target": "",
                "object_sliced": False,
                "object_target": household.target,
                "parent_target": household.goal,
                "toggle_target": household.toggle,
            },
            "turk_annotations": {
                "anns": [
                    {
                        "assignment_id": "generated",
                        "high_descs": [],
                        "task_desc": task,
                        "votes": [1],
                    }
                ]
            },
            "scene": {
                "floor_plan": f"FloorPlan{household.floor_plan}",
                "scene_num": household.floor_plan,
                "generated": True,
            },
        }
    )


def _json(value: dict) -> str:
    return json.dumps(value, indent=1) + "\n"


def problem_text(catalog: Catalog, household: Household, trial: str) -> str:
    """Return initial_state.pddl: declarations, initial facts and goal, all in a fixed order."""
    goal, _ = catalog.goals[household.task_type]
    # ALFWorld's goals write "#" where PDDL has "-", and close the problem's own parenthesis.
    goal = goal.format(obj=household.target, recep=household.goal, toggle=household.toggle).replace(
        "#", "-"
    )
    lines = [f"(define (problem plan_{trial})", "(:domain alfred)", "(:objects"]
    lines += [f"    {line}" for line in _declarations(household)]
    lines += [")", "(:init"]
    lines += [f"    ({fact})" for fact in _facts(catalog, household)]
    lines += [")"]
    return "\n".join(lines) + goal


def _declarations(household: Household) -> list[str]:
    object_types = sorted({item.kind for item in household.items} | set(_DOMAIN_OBJECT_TYPES))
    receptacle_types = sorted(
        {r.kind for r in household.receptacles} | set(_DOMAIN_RECEPTACLE_TYPES)
    )
    spots = sorted(
        {r.spot for r in household.receptacles}
        | {item.spot for item in household.items}
        | {household.start}
    )
    return [
        "agent1 - agent",
        *(f"{kind}Type - otype" for kind in object_types),
        *(f"{kind}Type - rtype" for kind in receptacle_types),
        *(f"{symbol(item.id)} - object" for item in household.items),
        *(f"{symbol(r.id)} - receptacle" for r in household.receptacles),
        *(f"{symbol(spot)} - location" for spot in spots),
    ]


def _facts(catalog: Catalog, household: Household) -> list[str]:
    facts = [f"atLocation agent1 {symbol(household.start)}"]
    for receptacle in household.receptacles:
        facts += _receptacle_facts(catalog, receptacle)
    object_kinds = sorted({item.kind for item in household.items})
    for kind in sorted({r.kind for r in household.receptacles}):
        facts += [
            f"canContain {kind}Type {other}Type"
            for other in object_kinds
            if other in catalog.fits[kind]
        ]
    portable = {item.id for item in household.objects}
    for item in household.items:
        facts += _item_facts(catalog, item, item.id in portable)
    return facts


def _receptacle_facts(catalog: Catalog, receptacle: Receptacle) -> list[str]:
    name = symbol(receptacle.id)
    facts = [
        f"receptacleType {name} {receptacle.kind}Type",
        f"receptacleAtLocation {name} {symbol(receptacle.spot)}",
    ]
    return facts + ([f"openable {name}"] if receptacle.kind in catalog.openable else [])


def _item_facts(catalog: Catalog, item: Item, portable: bool) -> list[str]:
    name = symbol(item.id)
    facts = [f"objectType {name} {item.kind}Type", f"objectAtLocation {name} {symbol(item.spot)}"]
    if item.inside is not None:
        facts.append(f"inReceptacle {name} {symbol(item.inside)}")
    if item.kind in catalog.affords["Toggleable"]:
        facts.append(f"toggleable {name}")
    if portable:
        facts.append(f"pickupable {name}")
        facts += [
            f"{fact} {name}"
            for affordance, fact in _PREDICATES.items()
            if item.kind in catalog.affords[affordance]
        ]
        if item.kind in catalog.containers:
            facts.append(f"isReceptacleObject {name}")
    return facts


def symbol(name: str) -> str:
    """Return an ALFRED id in ALFWorld's PDDL: "Cup|-00.10" -> "Cup_bar__minus_00_dot_10"."""
    return (
        name.replace("|", "_bar_")
        .replace("+", "_plus_")
        .replace("-", "_minus_")
        .replace(".", "_dot_")
    )
