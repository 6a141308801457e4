"""Rows as the world's data sets have them, and the records in them."""

import pytest

from fgrlhf_jax.data import records, trees
from fgrlhf_jax.data.formats import parse_columns
from fgrlhf_jax.data.records import Edit, Instruction, Message, Preference
from fgrlhf_jax.errors import InputError

SKY = "What color is the sky?"


def turns(*texts: str, system: str = "") -> list[dict[str, str]]:
    """Messages of the user and the assistant by turns, behind a system message."""
    head = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant") * len(texts)
    return head + [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]


def chat(*texts: str, system: str = "") -> tuple[Message, ...]:
    return tuple(Message(**turn) for turn in turns(*texts, system=system))


def said(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


def pair(better: str = "Blue.", worse: str = "Green.", *messages: Message, prompt: str = ""):
    return Preference(prompt, "", better, worse, 1, messages=messages)


BLUE, GREEN = [{"role": "assistant", "content": text} for text in ("Blue.", "Green.")]
ULTRA = {
    "prompt": SKY,
    "prompt_id": "a3",
    "chosen": [*turns(SKY), BLUE],
    "rejected": [*turns(SKY), GREEN],
    "messages": [*turns(SKY), BLUE],
    "score_chosen": 8.0,
    "score_rejected": 2.5,
}
HUMAN = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: What color is the sky?\n\nAssistant:"
HELPSTEER = {"domain": "general", "language": "english", "context": turns("Hi", "Hello", SKY)}
MANY = chat("Hi", "Hello", SKY)

LAYOUTS = {
    "TRL preference": (
        {"prompt": SKY, "chosen": "Blue.", "rejected": "Green."},
        pair(prompt=SKY),
    ),
    "TRL preference, conversational": (
        {"prompt": turns("Hi", "Hello", SKY), "chosen": [BLUE], "rejected": [GREEN]},
        pair("Blue.", "Green.", *MANY),
    ),
    "TRL implicit prompt": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        pair(" blue.", " green.", prompt="The sky is"),
    ),
    "TRL implicit prompt, conversational": (
        {"chosen": [*turns(SKY, system="Be brief."), BLUE]}
        | {"rejected": [*turns(SKY, system="Be brief."), GREEN]},
        pair("Blue.", "Green.", *chat(SKY, system="Be brief.")),
    ),
    "TRL prompt-completion": (
        {"prompt": turns(SKY), "completion": [BLUE]},
        Instruction("", "", "Blue.", chat(SKY)),
    ),
    "TRL unpaired preference": (
        {"prompt": SKY, "completion": "Blue.", "label": True},
        Instruction(SKY, "", "Blue."),
    ),
    "alpaca with chosen and rejected": (
        {"instruction": "Sum up.", "input": "A text.", "chosen": "Blue.", "rejected": "Green."},
        Preference("Sum up.", "A text.", "Blue.", "Green.", 1),
    ),
    "orca with a system message": (
        {"system": "Be brief.", "prompt": SKY, "chosen": "Blue.", "rejected": "Green."},
        pair("Blue.", "Green.", *chat(SKY, system="Be brief.")),
    ),
    "UltraFeedback binarized": (ULTRA, pair("Blue.", "Green.", *chat(SKY))),
    "HH-RLHF": (
        {"chosen": f"{HUMAN} Blue.", "rejected": f"{HUMAN} Green."},
        pair("Blue.", "Green.", *MANY),
    ),
    "full-hh-rlhf": (
        {"prompt": HUMAN, "response": " Blue.", "chosen": " Blue.", "rejected": " Green."},
        pair("Blue.", "Green.", *MANY),
    ),
    "messages": (
        {"messages": [*turns("Hi", "Hello", SKY, system="Be brief."), BLUE]},
        Instruction("", "", "Blue.", chat("Hi", "Hello", SKY, system="Be brief.")),
    ),
    "no_robots": (
        {"prompt": SKY, "prompt_id": "1", "messages": [*turns(SKY), BLUE], "category": "QA"},
        Instruction("", "", "Blue.", chat(SKY)),
    ),
    "content in parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": SKY}]}, BLUE]},
        Instruction("", "", "Blue.", chat(SKY)),
    ),
    "ShareGPT": (
        {
            "id": "x",
            "conversations": [said("system", ""), said("human", SKY), said("gpt", "Blue.")],
        },
        Instruction("", "", "Blue.", chat(SKY)),
    ),
    "ShareGPT column by column": (
        {"conversations": {"from": ["human", "gpt"], "value": [SKY, "Blue."]}},
        Instruction("", "", "Blue.", chat(SKY)),
    ),
    "ShareGPT preference of LLaMA-Factory": (
        {"conversations": [said("human", SKY)]}
        | {"chosen": said("gpt", "Blue."), "rejected": said("gpt", "Green.")},
        pair("Blue.", "Green.", *chat(SKY)),
    ),
    "HelpSteer3 preference": (
        HELPSTEER
        | {"response1": "Green.", "response2": "Blue.", "overall_preference": 2}
        | {"individual_preference": [{"score": 2, "reasoning": "It is."}]},
        Preference("", "", "Green.", "Blue.", 2, messages=MANY),
    ),
    "HelpSteer3 edit": (
        HELPSTEER
        | {"original_response": "It is green.", "edited_response": "It is blue."}
        | {"feedback": ["Wrong."], "change_summary": "The colour."},
        Edit("", "", "It is green.", "It is blue.", messages=MANY),
    ),
    "HelpSteer3 edit_quality": (
        HELPSTEER
        | {"original_response": "Red.", "good_edited_response": "Blue."}
        | {"bad_edited_response": "Green.", "feedback": []},
        pair("Blue.", "Green.", *MANY),
    ),
    "AlpacaFarm": (
        {"instruction": SKY, "input": "", "output_1": "A", "output_2": "B", "preference": 2}
        | {"raw_preference": 3},
        Preference(SKY, "", "A", "B", 2),
    ),
    "Dolly": (
        {"instruction": SKY, "context": "A text.", "response": "Blue.", "category": "open_qa"},
        Instruction(SKY, "A text.", "Blue."),
    ),
    "our edit of a conversation": (
        {"messages": turns("Hi", "Hello", SKY), "original": "Green.", "edited": "Blue."},
        Edit("", "", "Green.", "Blue.", messages=MANY),
    ),
    "columns of nulls, as Parquet fills them": (
        {"prompt": SKY, "messages": None, "output": None, "chosen": "Blue.", "rejected": "Green."},
        pair(prompt=SKY),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name):
    row, expected = LAYOUTS[name]
    assert records.parse_row(row, "a:1") == [expected]
    # A record's prompt needs no answer, and is the same.
    prompt = records.parse_row(row, "a:1", "prompts")[0]
    assert records.prompt_key(prompt) == records.prompt_key(expected)


MAPPED = [
    ({"question": SKY, "good": "A", "bad": "B"}, "prompt=question,chosen=good,rejected=bad"),
    ({"prompt": "no", "q": SKY, "chosen": "A", "rejected": "B", "output": "C"}, "prompt=q,chosen"),
    ({"instruction": "x", "prompt": SKY, "chosen": "A", "rejected": "B"}, "prompt"),
]


@pytest.mark.parametrize(("row", "columns"), MAPPED)
def test_columns(row, columns):
    assert records.parse_row(row, "a:1", columns=parse_columns(columns)) == [
        pair("A", "B", prompt=SKY)
    ]


def test_columns_make_edits_of_a_pair_and_pairs_of_predictions():
    columns = parse_columns("original=rejected, edited=chosen")
    assert records.parse_row(ULTRA, "a:1", columns=columns) == [
        Edit("", "", "Green.", "Blue.", messages=chat(SKY))
    ]
    row = {"instruction": SKY, "predictions": '["A", "B", "C"]', "preference": [1, 0, 2], "id": 7}
    assert records.parse_row(row, "a:1", columns=parse_columns("predictions,preference")) == [
        Preference(SKY, "", "A", "B", 1, "7/1-2"),
        Preference(SKY, "", "B", "C", 2, "7/2-3"),
    ]


TREE = [
    {"message_id": "p", "parent_id": None, "role": "prompter", "text": "Hi", "rank": None},
    {"message_id": "b", "parent_id": "p", "role": "assistant", "text": "No.", "rank": 1},
    {"message_id": "a", "parent_id": "p", "role": "assistant", "text": "Hello", "rank": 0},
    {"message_id": "q", "parent_id": "a", "role": "prompter", "text": SKY, "rank": None},
    {"message_id": "c", "parent_id": "q", "role": "assistant", "text": "Blue.", "rank": None},
    {"message_id": "d", "parent_id": "q", "role": "assistant", "text": "x", "deleted": True},
]
HI = chat("Hi")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("need", "expected"),
    [
        ("pairs", [Preference("", "", "Hello", "No.", 1, "p", HI)]),
        ("responses", [Instruction("", "", "Hello", HI), Instruction("", "", "Blue.", MANY)]),
        ("prompts", [Instruction("", "", "", HI), Instruction("", "", "", MANY)]),
        (
            "any",
            [Preference("", "", "Hello", "No.", 1, "p", HI), Instruction("", "", "Blue.", MANY)],
        ),
    ],
)
def test_message_trees(nested, need, expected):
    rows = TREE
    if nested:
        nodes = {row["message_id"]: row | {"replies": []} for row in TREE}
        for row in TREE[1:]:
            nodes[row["parent_id"]]["replies"].append(nodes[row["message_id"]])
        rows = [{"message_tree_id": "p", "tree_state": "ready", "prompt": nodes["p"]}]
    places = ((f"a:{n}", row) for n, row in enumerate(rows, 1))
    read = [
        r for where, row in trees.unfold(places, need) for r in records.parse_row(row, where, need)
    ]
    assert read == expected


EDITED = {"instruction": SKY, "original": "Green.", "edited": "Blue."}
REFUSED = [
    (EDITED | {"chosen": "A", "rejected": "B"}, "fits two layouts.*config.columns=original,edited"),
    ({"instruction": SKY, "output": "A", "response": "B"}, "fits two layouts, output or response"),
    ({"instruction": SKY, "chosen": "A"}, "misses the field 'rejected'"),
    ({"instruction": SKY, "output": "A", "rejected": "A"}, "misses the field 'chosen'"),
    ({"prompt": SKY, "instruction": "x", "output": "A"}, "prompt and instruction hold two diff"),
    (ULTRA | {"prompt": "x"}, "chosen and prompt hold two different prompts"),
    (
        {"question": SKY, "chosen": "A b", "rejected": "A c"},
        "misses the field 'instruction' .it has",
    ),
    ({"chosen": "Ab", "rejected": "Ac"}, "misses the field 'instruction'"),
    ({"chosen": "A b", "rejected": "A "}, "the response 'rejected' is empty"),
    ({"chosen": [*turns("a"), BLUE], "rejected": [*turns("b"), GREEN]}, "end different conver"),
    ({"prompt": SKY, "chosen": turns("a"), "rejected": [GREEN]}, "chosen does not end with an"),
    ({"messages": [*turns("a", "b"), GREEN], "output": "x"}, "do not end with one of the user"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages: .* is no message with a role"),
    ({"messages": "Hi"}, "messages: is no list of messages"),
    ({"messages": [*turns("a"), {"role": "system", "content": "x"}]}, "a system message stands"),
    ({"prompt": SKY, "completion": "Blue.", "label": False}, "label is false"),
    (HELPSTEER | {"response1": "A", "response2": "B", "overall_preference": 0}, "drop ties"),
    ({"instruction": SKY, "output": "x" * 3_000_000}, "bytes, more than the 2,000,000"),
    ({"instruction": SKY, "output": "A", "id": "\ud83d"}, "'id' holds invalid Unicode"),
    (TREE[4], "misses the field 'instruction'"),
]


@pytest.mark.parametrize(("row", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused(row, message):
    with pytest.raises(InputError, match=f"^a:1: .*{message}") as caught:
        records.parse_row(row, "a:1")
    assert len(str(caught.value)) < 500


def test_columns_that_are_not_there():
    with pytest.raises(InputError, match="'foo' is no field"):
        parse_columns("foo=bar")
    with pytest.raises(InputError, match="misses the field 'bar'"):
        records.parse_row(EDITED, "a:1", columns=parse_columns("prompt=bar"))
