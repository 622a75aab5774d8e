"""Rows in the layouts of public data sets, one per file of `public`; the words are our own."""

import copy
import json
from pathlib import Path

FOLDER = Path(__file__).parent / "public"


def row(name):
    """Return the one row of a file."""
    (only,) = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return only


WEBSHOP, WEATHER, OS = row("webshop"), row("weather"), row("agentinstruct_os")
OPENAI, HERMES, QWEN = row("openai_tool_calls"), row("hermes"), row("qwen_tool_call")
FACTORY = row("llamafactory_sharegpt")
VERL_FIRST, VERL_LATER = row("verl_agent_first"), row("verl_agent_later")
RECORDED = row("recorded_steps")
LOOK = {"role": "assistant", "content": "Action: look"}
FIRST = "You are in a room.\nYour task is to: find the key."


def pairs(*texts, **more):
    """Return a row of `conversations` in which user and agent take turns."""
    return {
        "conversations": [
            {"from": ("human", "gpt")[number % 2], "value": text}
            for number, text in enumerate(texts)
        ]
    } | more


def messages(*later, **more):
    """Return a row of `messages` that begins with the task."""
    return {"messages": [{"role": "user", "content": FIRST}, *later]} | more


def changed_call(**changes):
    """Return OpenAI's row with changed messages; m2 is the third message."""
    row = copy.deepcopy(OPENAI)
    for name, change in changes.items():
        row["messages"][int(name[1:])] |= change
    return row


def changed_step(number, **changes):
    """Return the row of recorded steps with a changed step."""
    row = copy.deepcopy(RECORDED)
    row["steps"][number] |= changes
    return row


# File -> (layout, task, [(observation, thought, action), …]) that its row must become.
EPISODES = {
    "webshop": (
        "eto",
        "i need a 6.76 fl oz bottle of cologne, price lower than 100.00 dollars",
        [
            (
                "WebShop [SEP]\nSearch",
                "I search for it first.",
                "search[6.76 fl oz  bottle, cologne]",
            ),
            (
                "[button] Back to Search [button_] [SEP] Page 1 (Total results: 2) [SEP] B01 [SEP] "
                "$31.5",
                "The first fits.",
                "click[B01]",
            ),
        ],
    ),
    "scienceworld": (
        "eto",
        "heat the water to 37.5 degrees",
        [
            (
                "First, focus on the water. Then, heat it.\nThis room is called the kitchen. "
                "In it, you see:\n  a stove\n  a sink",
                "I follow the order, e.g. focus first.",
                "focus on water",
            )
        ],
    ),
    "weather": (
        "agentgym",
        "What is the highest temperature here today?",
        [
            (
                "Now new trial starts.\nGive me one action.",
                "I need the date.",
                "get_user_current_date with Action Input: {}",
            ),
            (
                "2023-06-12\n\nGive me one action.",
                "I know it.",
                'finish with Action Input: {"answer": "31.4"}',
            ),
        ],
    ),
    "wordle": (
        "agentgym",
        "guess a hidden 5 letter word",
        [
            (
                "You are an expert wordle player. Welcome to the game of Wordle.\n"
                "You have 6 attempts to guess it correctly.\n"
                "Now let's start a new game. The word should be strictly in the vocabulary.",
                "I begin with common letters.",
                "c r a n e",
            ),
            ("b y b b g", "It ends in e.", "r o g u e"),
        ],
    ),
    "sqlgym": (
        "agentgym",
        "How many customers pay in euros?",
        [
            (
                "debit_card contains tables such as customers. Table customers has columns such as "
                "CustomerID, Currency.",
                "I count them.",
                "```sql\nSELECT COUNT(*) FROM customers WHERE Currency = 'EUR';\n```",
            )
        ],
    ),
    "agentinstruct_os": (
        "agentgym",
        'Tell me how many files are in the directory "/etc"',
        [
            (
                "",
                "I list the files, one a line, and count.",
                "bash\n\n```bash\ncd /etc\nls -1  | wc -l\n```",
            ),
            ("The output of the OS:\n\n220", "That is the number.", "answer(220)"),
        ],
    ),
    "agentinstruct_db": (
        "agentgym",
        "What are the Notes when the Method is decision?",
        [
            (
                "The name of this table is Results, and the headers of this table are "
                "Result,Method,Notes.",
                "To answer this I filter the rows by method.",
                "Operation\n```sql\nSELECT Notes FROM Results WHERE Method = 'decision';\n```",
            ),
            (
                "[('Women +60kg Bronze',)]",
                "That is the row.",
                'Answer\nFinal Answer: ["Women +60kg Bronze"]',
            ),
        ],
    ),
    "agentinstruct_kg": (
        "agentgym",
        "which bridge crosses the Spree?",
        [
            ("Entities: ['Spree']", "I look at the river's relations.", "get_relations(Spree)"),
            (
                "[geography.river.bridges, geography.river.length]",
                "The variable holds them.",
                "Final Answer: #0",
            ),
        ],
    ),
    "openai_tool_calls": (
        "messages",
        "Is it warmer in Paris or in Rome?\nAnswer with one word",
        [
            (
                "",
                "I need both temperatures.",
                '[{"name": "get_weather", "arguments": {"city":  "Paris"}}, '
                '{"name": "get_weather", "arguments": {"city": "Rome"}}]',
            ),
            ('{"celsius": 24}\n{"celsius": 31.5}', None, "Rome."),
        ],
    ),
    "hermes": (
        "sharegpt",
        "What is the weather in Oslo?",
        [
            ("", None, '{"arguments": {"city": "Oslo"}, "name": "get_weather"}'),
            ('{"celsius": -3}', None, "It is -3 degrees in Oslo.\nDress warmly."),
        ],
    ),
    "qwen_tool_call": (
        "messages",
        "put a plate in the fridge",
        [
            (
                "You are in a kitchen.",
                "The fridge is closed.",
                '{"name": "act", "arguments": {"command": "open  fridge"}}',
            ),
            (
                "You open the fridge.",
                None,
                '[{"name": "act", "arguments": {"command": "look"}}, '
                '{"name": "act", "arguments": {"command": "wait"}}]',
            ),
            ("A cold fridge.\nTime passes.", "Done.", "The plate is in the fridge."),
        ],
    ),
    "llamafactory_sharegpt": (
        "sharegpt",
        "Book a table for two",
        [
            ("", None, '{"name": "book", "arguments": {"people": 2}}'),
            ('{"booked": true}', None, "Your table is booked."),
        ],
    ),
    "llamafactory_alpaca": (
        "alpaca",
        "find the key",
        [
            ("You are in a room. You see a drawer 1.", "in there?", "open drawer 1"),
            (
                "The drawer 1 is open. In it you see a key 1.",
                "there it is.",
                "take key 1 from drawer 1",
            ),
        ],
    ),
    "verl_agent_first": (
        "verl-agent",
        "cool some bread",
        [
            (
                "You are in the middle of a room. Looking quickly around you, you see a fridge 1.",
                "The fridge cools.",
                "go to fridge 1",
            )
        ],
    ),
    "verl_agent_later": (
        "verl-agent",
        "cool some bread",
        [
            ("You arrive at fridge 1. It's closed.", None, "open fridge 1"),
            ("You open the fridge 1.", None, "look"),
            ("You are facing the fridge 1.", "Now I cool it.", "cool bread 1 with fridge 1"),
        ],
    ),
    "verl_agent_webshop": (
        "verl-agent",
        "find a red mug, price lower than 9.50 dollars",
        [("'Search'", "I search.", "search[red mug]")],
    ),
    "recorded_steps": (
        "steps",
        "put a hot potato in fridge",
        [
            (
                "You are in the middle of a room. Looking quickly around you, you see a "
                "countertop 1, a fridge 1, and a microwave 1.",
                "First I need to find a potato. It may be on countertop (1), or in fridge (1).",
                "go to countertop 1",
            ),
            (
                "You arrive at countertop 1. On the countertop 1, you see a potato 2, and a cup 1.",
                "Now I find a potato (1). Next, I need to take it.",
                "take potato 1 from countertop 1",
            ),
            ("Nothing happens.", None, "take potato 2 from countertop 1"),
            (
                "You pick up the potato 2 from the countertop 1.",
                "Next, I'll heat the potato (2) with microwave (1).",
                "go to microwave 1",
            ),
        ],
    ),
}
