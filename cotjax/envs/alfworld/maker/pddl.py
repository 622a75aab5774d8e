"""Writes a sampled household as ALFWorld's files: the PDDL problem, the game, the trajectory's header."""

from __future__ import annotations

import json
import random

from cotjax.envs.alfworld.catalog import Catalog, Receptacle
from cotjax.envs.alfworld.maker.sample import Item, World

_PREDICATES = {
    "Cleanable": "cleanable",
    "Coolable": "coolable",
    "Heatable": "heatable",
    "Sliceable": "sliceable",
}
# Types that the domain's actions name, so every problem must declare them.
_DOMAIN_OBJECT_TYPES = ("ButterKnife", "Knife")
_DOMAIN_RECEPTACLE_TYPES = ("Fridge", "Microwave", "SinkBasin")


def folder_name(world: World) -> str:
    """ALFWorld's "<task>-<Obj>-<Mrecep>-<Recep>-<scene>"; a lamp stands where there is no goal receptacle."""
    return f"{world.task_type}-{world.target}-None-{world.goal or world.toggle}-{world.floor_plan}"


def instruction(catalog: Catalog, world: World, rng: random.Random) -> str:
    """One of ALFWorld's own templates for the task type, filled in as ALFWorld does."""
    _, templates = catalog.goals[world.task_type]
    return rng.choice(templates).format(
        obj=world.target.lower(), recep=world.goal.lower(), toggle=world.toggle.lower(), mrecep=""
    )


def game_file(catalog: Catalog, problem: str, task: str, commands: list[str]) -> str:
    """game.tw-pddl, a JSON object. `solvable` is true because no other game is ever kept."""
    return _json(
        {
            "pddl_domain": catalog.domain,
            "grammar": catalog.grammar.replace("UNKNOWN GOAL", task),
            "pddl_problem": problem,
            "walkthrough": commands,
            "solvable": True,
        }
    )


def trajectory_file(world: World, trial: str, task: str) -> str:
    """traj_data.json: what ALFWorld's loaders and experts read of an ALFRED trajectory."""
    return _json(
        {
            "task_id": trial,
            "task_type": world.task_type,
            "pddl_params": {
                "mrecep_target": "",
                "object_sliced": False,
                "object_target": world.target,
                "parent_target": world.goal,
                "toggle_target": world.toggle,
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
                "floor_plan": f"FloorPlan{world.floor_plan}",
                "scene_num": world.floor_plan,
                "generated": True,
            },
        }
    )


def _json(value: dict) -> str:
    return json.dumps(value, indent=1) + "\n"


def problem_text(catalog: Catalog, world: World, trial: str) -> str:
    """initial_state.pddl: declarations, initial facts, goal, all in a fixed order."""
    goal, _ = catalog.goals[world.task_type]
    # ALFWorld's goals write "#" where PDDL has "-", and close the problem's own parenthesis.
    goal = goal.format(obj=world.target, recep=world.goal, toggle=world.toggle).replace("#", "-")
    lines = [f"(define (problem plan_{trial})", "(:domain alfred)", "(:objects"]
    lines += [f"    {line}" for line in _declarations(world)]
    lines += [")", "(:init"]
    lines += [f"    ({fact})" for fact in _facts(catalog, world)]
    lines += [")"]
    return "\n".join(lines) + goal


def _declarations(world: World) -> list[str]:
    object_types = sorted({item.kind for item in world.items} | set(_DOMAIN_OBJECT_TYPES))
    receptacle_types = sorted({r.kind for r in world.receptacles} | set(_DOMAIN_RECEPTACLE_TYPES))
    spots = sorted({thing.spot for thing in (*world.receptacles, *world.items)} | {world.start})
    return [
        "agent1 - agent",
        *(f"{kind}Type - otype" for kind in object_types),
        *(f"{kind}Type - rtype" for kind in receptacle_types),
        *(f"{symbol(item.id)} - object" for item in world.items),
        *(f"{symbol(r.id)} - receptacle" for r in world.receptacles),
        *(f"{symbol(spot)} - location" for spot in spots),
    ]


def _facts(catalog: Catalog, world: World) -> list[str]:
    facts = [f"atLocation agent1 {symbol(world.start)}"]
    for receptacle in world.receptacles:
        facts += _receptacle_facts(catalog, receptacle)
    object_kinds = sorted({item.kind for item in world.items})
    for kind in sorted({r.kind for r in world.receptacles}):
        facts += [
            f"canContain {kind}Type {other}Type"
            for other in object_kinds
            if other in catalog.fits[kind]
        ]
    portable = {item.id for item in world.objects}
    for item in world.items:
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
    """ALFWorld's spelling of an ALFRED id in PDDL: "Cup|-00.10|+01.00|+02.00" -> "Cup_bar__minus_00_dot_10_bar_..."."""
    return (
        name.replace("|", "_bar_")
        .replace("+", "_plus_")
        .replace("-", "_minus_")
        .replace(".", "_dot_")
    )
