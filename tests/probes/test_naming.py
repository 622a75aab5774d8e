"""What actions of all worlds name, where texts mention it, and names swapped for others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotjax.probes.naming import (
    Swap,
    before_action,
    before_things,
    first_mention,
    mentions,
    names,
    noun_swaps,
    nouns,
    sentences,
    swapped,
    swaps,
    things,
)


@pytest.mark.parametrize(
    ("action", "named"),
    [
        ("take mug 1 from countertop 2", ["mug 1", "countertop 2"]),
        ("put mug 1 in/on shelf 12", ["mug 1", "shelf 12"]),
        ("go to cabinet 3", ["cabinet 3"]),
        ("look", []),
        ("look around", []),
        ("inventory", []),
        ("search: Bel Tor Na birthplace", ["Bel Tor Na birthplace"]),
        ("answer: 1987", ["1987"]),
        ("pick up metal pot", ["metal pot"]),
        ("use thermometer in inventory on substance in metal pot",
         ["thermometer", "inventory", "substance", "metal pot"]),
        ("[cd(folder='notes'), cat(file_name=\"plan.txt\", lines=3)]", ["notes", "plan.txt", "3"]),
        ("done", []),
        ("", []),
    ],
)  # fmt: skip
def test_the_things_of_an_action(action, named):
    found = things(action)
    assert [thing.text for thing in found] == named
    assert all(action[thing.start : thing.end] == thing.text for thing in found)


def test_a_numbered_thing_is_named_by_its_whole_name_and_others_by_their_words():
    thought = "i need a mug. mug 12 is not at shelf 1. the birthplace of Bel Tor."
    assert not mentions(thought, "take mug 1 from shelf 12")
    assert names(thought, "move mug 12 to shelf 1")
    assert mentions(thought, "move mug 12 to shelf 3")
    assert not names(thought, "move mug 12 to shelf 3")
    assert names(thought, "search: bel tor birthplace")
    assert not names(thought, "search: Bel Tor employer")
    assert first_mention(thought, "search: Bel Tor birthplace") == thought.index("birthplace")
    assert not names(thought, "look")
    assert not names("a mug 1.", "open mug 1 with key")


def test_a_thought_is_cut_before_its_things_and_before_its_action():
    thought = "i need a mug. cabinet 1 is empty. then comes cabinet 2, so next i go to cabinet 2."
    action = "go to cabinet 2"
    assert before_things(thought, action) == "i need a mug. cabinet 1 is empty. then comes"
    said = before_action(thought, action)
    assert said == "i need a mug. cabinet 1 is empty. then comes cabinet 2,"
    assert before_things(thought, "go to cabinet 3") == thought
    assert before_action(thought, "go to cabinet 3") == thought
    apart = "mug 1 is here. shelf 2 is far. i go"
    assert before_action(apart, "move mug 1 to shelf 2") == "mug 1 is here."
    assert before_action("look at plan.txt, then cat plan.txt.", "[cat(f='plan.txt')]") == (
        "look at plan.txt,"
    )


def test_actions_that_differ_in_one_name_are_swaps():
    action = "take mug 1 from shelf 2"
    others = [
        action,
        "take plate 3 from shelf 2",
        "take mug 1 from shelf 3",
        "take plate 3 from shelf 3",
        "examine mug 1",
        "clean mug 1 with sinkbasin 1",
        "look",
    ]
    assert swaps(action, others) == [
        Swap("take plate 3 from shelf 2", "mug 1", "plate 3"),
        Swap("take mug 1 from shelf 3", "shelf 2", "shelf 3"),
    ]
    assert swaps("open fridge 1", ["close fridge 1", "open fridge 2"]) == [
        Swap("open fridge 2", "fridge 1", "fridge 2")
    ]
    query = "search: Bel Tor birthplace"
    assert swaps(query, ["search: Kel birthplace", "search: Bel Tor employer", "answer: Kel"]) == [
        Swap("search: Kel birthplace", "Bel Tor", "Kel"),
        Swap("search: Bel Tor employer", "birthplace", "employer"),
    ]
    assert swaps("[cat(f='a.txt')]", ["[cat(f='b.txt')]", "[rm(f='b.txt')]"]) == [
        Swap("[cat(f='b.txt')]", "a.txt", "b.txt")
    ]
    assert swaps("look", ["look", "inventory"]) == []


def test_every_mention_is_swapped_and_nothing_else():
    thought = "then comes Cabinet 1, not cabinet 12, so next i go to cabinet 1."
    swap = Swap("go to fridge 1", "cabinet 1", "fridge 1")
    assert (
        swapped(thought, swap) == "then comes fridge 1, not cabinet 12, so next i go to fridge 1."
    )
    assert swapped("i go on.", swap) is None
    backslash = Swap("a", "cabinet 1", r"\1 \g<0>")
    assert swapped("cabinet 1", backslash) == r"\1 \g<0>"


def test_sentences_join_to_the_text_and_their_nouns_are_swapped_by_form():
    text = "i need a clean mug in the fridge. mug 2 is at shelf 1! see plan.txt now"
    assert "".join(sentences(text)) == text and len(sentences(text)) == 3
    known = nouns(["take mug 2 from shelf 1", "open fridge 1", "take pan 4 from stove 1"])
    assert known == [
        "mug 2", "mug", "shelf 1", "shelf", "fridge 1", "fridge", "pan 4", "pan", "stove 1", "stove"
    ]  # fmt: skip
    first = {(swap.old, swap.new) for swap in noun_swaps(sentences(text)[0], known, text)}
    assert first == {(old, new) for old in ("mug", "fridge") for new in ("pan", "stove")}
    second = {(swap.old, swap.new) for swap in noun_swaps(sentences(text)[1], known, text)}
    assert second == {
        (old, new) for old in ("mug 2", "shelf 1") for new in ("pan 4", "stove 1", "fridge 1")
    }


@given(st.text("ab .!?,\n", max_size=30))
def test_sentences_are_the_text_in_pieces(text):
    assert "".join(sentences(text)) == text
