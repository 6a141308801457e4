"""Rows as the world's data sets have them, and the records in them."""

import time

import pytest
from format_cases import BLUE, GREEN, HELPSTEER, LAYOUTS, MANY, SKY, TREE, ULTRA, chat, pair, turns

from fgrlhf_jax.data import formats, message_trees, records, sources
from fgrlhf_jax.data.records import Edit, Instruction, Preference
from fgrlhf_jax.data.row_fields import parse_columns
from fgrlhf_jax.errors import InputError


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name):
    row, expected = LAYOUTS[name]
    assert formats.parse_row(row, "a:1") == [expected]
    # A record's prompt needs no answer, and is the same.
    prompt = formats.parse_row(row, "a:1", "prompts")[0]
    assert records.prompt_key(prompt) == records.prompt_key(expected)


A_B, A_AND_B = [pair("A", "B", prompt=SKY)], {"chosen": "A", "rejected": "B"}
VOTED = {"instruction": SKY, "predictions": '["A", "B", "C"]', "preference": [1, 0, 2], "id": 7}
PAIRS = [Preference(SKY, "", "A", "B", 1, "7/1-2"), Preference(SKY, "", "B", "C", 2, "7/2-3")]
MAPPED = [
    ({"question": SKY, "good": "A", "bad": "B"}, "prompt=question,chosen=good,rejected=bad", A_B),
    (A_AND_B | {"prompt": "no", "q": SKY, "output": "C"}, "prompt=q,chosen", A_B),
    (A_AND_B | {"instruction": "x", "prompt": SKY}, "prompt", A_B),
    (A_AND_B | {"input": SKY}, "prompt=input", A_B),
    (A_AND_B | {"history": SKY}, "prompt=history", A_B),
    (ULTRA | {"history": [["Hi", "Hello"]]}, "chosen", formats.parse_row(ULTRA, "a:1")),
    (
        ULTRA,
        "original=rejected, edited=chosen",
        [Edit("", "", "Green.", "Blue.", "", (), chat(SKY))],
    ),
    (
        {"prompt": SKY, "chosen": f"{SKY} Blue.", "rejected": f"{SKY} Red."}
        | {"error_spans": [[len(SKY) + 1, len(SKY) + 4]]},
        "original=rejected,edited=chosen",
        [Edit(SKY, "", " Red.", " Blue.", "", ((1, 4),))],
    ),
    (VOTED, "predictions,preference", PAIRS),
]


@pytest.mark.parametrize(("row", "columns", "expected"), MAPPED)
def test_columns(row, columns, expected):
    assert formats.parse_row(row, "a:1", columns=parse_columns(columns)) == expected


@pytest.mark.parametrize("need", ["any", "prompts", "candidates"])
def test_a_label_is_of_no_interest_where_the_response_is_not_learnt(need):
    row = {"prompt": SKY, "completion": "Green.", "label": False}
    assert formats.parse_row(row, "a:1", need) == [Instruction(SKY, "", "Green.")]


HI = chat("Hi")
BETTER = Preference("", "", "Hello", "No.", 1, "p", HI)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("need", "expected"),
    [
        ("pairs", [BETTER]),
        ("responses", [Instruction("", "", "Hello", HI), Instruction("", "", "Blue.", MANY)]),
        ("prompts", [Instruction("", "", "", HI), Instruction("", "", "", MANY)]),
        ("any", [BETTER, Instruction("", "", "Blue.", MANY)]),
        ("rows", [BETTER, Instruction("", "", "Blue.", MANY)]),
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
        r
        for where, row in message_trees.unfold(places, need)
        for r in formats.parse_row(row, where, need)
    ]
    assert read == expected


@pytest.mark.parametrize("none", ["", float("nan")])
def test_message_trees_of_a_table(none):
    """CSV has texts, and a table of numbers NaN where there is none."""
    rows = [
        row | {"rank": none if row["rank"] is None else str(float(row["rank"])), "deleted": "False"}
        for row in TREE[:3]
    ]
    rows[0]["parent_id"] = "" if none == "" else None
    (read,) = [row for _, row in message_trees.unfold(enumerate(rows), "pairs")]
    assert (read["chosen"], read["rejected"]) == ("Hello", "No.")


def test_two_messages_of_one_id_are_not_one():
    rows = [*TREE[:3], TREE[1], TREE[1] | {"text": "Nay."}]  # a message may come again
    unfolded = [*message_trees.unfold([(f"a:{n}", row) for n, row in enumerate(rows, 1)])]
    with pytest.raises(InputError, match="a:5: message_id b is another message's too"):
        formats.parse_row(unfolded[0][1], "a:5")
    assert [row["rejected"] for _, row in unfolded[1:]] == ["No."]


def test_columns_decide_which_answer_is_better_whatever_the_scores():
    row = ULTRA | {"score_chosen": 2, "score_rejected": 2.5}
    columns = parse_columns("chosen=rejected,rejected=chosen")
    (swapped,) = formats.parse_row(row, "a:1", columns=columns)
    (usual,) = formats.parse_row(ULTRA, "")
    assert (swapped.output_1, swapped.output_2) == (usual.output_2, usual.output_1)


@pytest.mark.parametrize("part", [" ", "user "])
def test_the_time_for_long_texts(part):
    row, start = {"prompt": part * 50_000, "chosen": "a", "rejected": "b"}, time.perf_counter()
    assert list(sources.with_messages(iter([("a:1", row)]))) == [("a:1", row)]
    row = {name: f"{part * 50_000}is {name}" for name in ("chosen", "rejected")}
    assert formats.parse_row(row, "a:1")[0].output_1 == " chosen"
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("columns", "flags"),
    [
        ("chosen", {"finished_1": True, "finished_2": False}),
        ("chosen=rejected,rejected=chosen", {"finished_1": False, "finished_2": True}),
        ("original=rejected,edited=chosen", {"finished": False}),
        ("original=chosen,edited=rejected", {"finished": True}),
        ("output=rejected", {"finished": False}),
    ],
)
def test_whether_an_answer_ended_goes_with_its_column(columns, flags):
    row = {"prompt": SKY, "chosen": "Blue.", "rejected": "Green, or", "finished_2": False}
    (record,) = formats.parse_row(row, "a:1", columns=parse_columns(columns))
    assert {name: getattr(record, name) for name in flags} == flags


def test_scores_and_weights_that_say_nothing_against_an_answer():
    row = ULTRA | {"score_chosen": 2, "score_rejected": 2.5}
    for need in ("candidates", "prompts"):  # where nobody asks which is better
        assert formats.parse_row(row, "a:1", need) == formats.parse_row(ULTRA, "", need)
    for kind in ("rating_rank", "toxicity_score"):  # of which the lower one is better
        row = ULTRA | {f"chosen_{kind}": 1, f"rejected_{kind}": 2}
        assert formats.parse_row(row, "a:1") == formats.parse_row(ULTRA, "")
    asked = [turn | {"weight": 0} for turn in turns(SKY)]
    (read,) = formats.parse_row({"messages": asked, "output": "Blue."}, "a:1")
    assert read.output == "Blue."


EDITED = {"instruction": SKY, "original": "Green.", "edited": "Blue."}
REFUSED = [
    (EDITED | {"chosen": "A", "rejected": "B"}, "fits two layouts.*config.columns=original,edited"),
    ({"instruction": SKY, "output": "A", "response": "B"}, "fits two layouts, output or response"),
    ({"instruction": SKY, "chosen": "A"}, "misses the field 'rejected'"),
    ({"instruction": SKY, "output": "A", "rejected": "A"}, "misses the field 'chosen'"),
    ({"prompt": SKY, "instruction": "x", "output": "A"}, "prompt and instruction hold two diff"),
    (ULTRA | {"prompt": "x"}, "chosen and prompt hold two different prompts"),
    ({"question": SKY, "chosen": "A b", "rejected": "A c"}, "misses the field 'instruction' .it"),
    ({"chosen": "Ab", "rejected": "Ac"}, "misses the field 'instruction'"),
    ({"dialog": turns(SKY), "chosen": "A b", "rejected": "A c"}, "misses the field 'instruction'"),
    ({"prompt": SKY, "response": "A", "edited.responses": ["B"]}, "of an Argilla or Label"),
    ({"prompt": SKY, "response": "A", "annotation_id": 1, "lead_time": 2}, "Argilla or Label"),
    ({"prompt": None, "chosen": "A b", "rejected": "A c"}, "prompt is empty; give a prompt"),
    ({"messages": [], "completion": "A"}, "messages is empty; give a prompt"),
    ({"context": SKY, "answer": "A"}, "misses the field 'instruction' .it has context, answer"),
    ({"chosen": "A b", "rejected": "A "}, "the response 'rejected' is empty"),
    ({"prompt": "\n\nHuman: A", "chosen": "A", "rejected": "\n\nAssistant: "}, "is empty; fill"),
    ({"chosen": [*turns("a"), BLUE], "rejected": [*turns("b"), GREEN]}, "to different conver"),
    ({"prompt": SKY, "chosen": turns("a"), "rejected": [GREEN]}, "chosen does not end with"),
    ({"messages": [*turns("a", "b"), GREEN], "output": "x"}, "do not end with one of the user"),
    ({"messages": [*turns(" "), GREEN]}, "messages: the user's message before the .* is empty"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages: .* is not a message with a role"),
    ({"messages": "Hi"}, "messages: is not a list of messages"),
    ({"messages": [*turns(SKY), GREEN | {"weight": 0}]}, "weight is 0, a response not to learn"),
    ({"prompt": SKY, "completion": [GREEN | {"weight": "0"}]}, "weight is 0, a response not to"),
    ({"messages": turns(SKY), "input": "A text.", "output": "A"}, "input and messages hold two di"),
    *(
        ({"messages": [*turns(SKY), GREEN | {name: False}]}, f"{name} is false, a response not to")
        for name in ("train", "training", "loss", "loss_scale")
    ),
    *(
        ({"messages": [*turns(SKY), GREEN | {name: True}]}, f"{name} is true, a response not to")
        for name in ("mask", "ignore")
    ),
    ({"instruction": SKY, "output": "A", "kto_tag": False}, "kto_tag is false, a response not"),
    ({"messages": [*turns(SKY), GREEN], "label": "False"}, "label is false, a response not to"),
    *(
        ({"chosen": f"{begin} Blue.", "rejected": f"{begin} Green."}, "in an unknown format")
        for begin in (
            "Human: Hi\nAssistant:",
            "<|user|>\nHi\n<|assistant|>\nSo",
            "[INST] Hi [/INST] So",
        )
    ),
    ({"system": "S", "messages": turns(SKY, "A", system="T")}, "system differs from the system"),
    (EDITED | {"system": "S", "system_prompt": "T"}, "system differs from system_prompt; remove"),
    (ULTRA | {"score_chosen": "2", "score_rejected": "2.5"}, "chosen is 2, .*_rejected is 2.5"),
    (ULTRA | {"chosen_rm_score": 1, "rejected_rm_score": 2}, "chosen_rm_score is 1, and"),
    (ULTRA | {"margin": "-0.5"}, "margin is -0.5: the rejected answer is better; exchange the"),
    (ULTRA | {"rejected-rating": 9, "chosen-rating": 8}, "chosen-rating is 8, .* take these fiel"),
    ({"messages": [*turns("a"), {"role": "system", "content": "x"}]}, "a system message comes"),
    *(
        ({"prompt": SKY, "completion": "Blue.", "label": label}, "label is false")
        for label in (False, 0, "False")
    ),
    *(
        ({"prompt": SKY, "completion": "Blue.", "label": label}, "label is .* true or false")
        for label in (-1, "no")
    ),
    *(
        ({"prompt": SKY, "completion": "Blue.", name: value}, f"has the field {name}, and only")
        for name, value in {"tools": [{"name": "f"}], "images": '["x"]', "image": "a.png"}.items()
    ),
    ({"messages": turns(SKY), "chat_template_kwargs": {"a": 1}}, "the field chat_template_kwargs"),
    *(
        ({"messages": [*turns(SKY), {"role": "assistant", "content": "A", name: [{}]}]}, name)
        for name in (
            "tool_calls",
            "reasoning_content",
            "thinking",
            "prefix",
            "train_detail",
            "truncated",
        )
    ),
    *(
        ({"messages": [*turns(SKY), {"role": "assistant", "content": [part]}]}, "is not a message")
        for part in ({"type": "reasoning", "text": "A"}, {"type": "image", "text": ""})
    ),
    ({"instruction": SKY, "output": "A", "history": ["Hi"]}, "history is not a list of .quest"),
    (ULTRA | {"history": [["Hi", "Hello"]]}, "history and chosen hold .*columns=chosen"),
    (HELPSTEER | {"response1": "A", "response2": "B", "overall_preference": 0}, "ties teach"),
    ({"instruction": SKY, "output": "x" * 3_000_000}, "bytes, more than the 2,000,000"),
    ({"instruction": SKY, "output": "A", "id": "\ud83d"}, "'id' holds invalid Unicode"),
    (TREE[4], "misses the field 'instruction'"),
]


@pytest.mark.parametrize(("row", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused(row, message):
    with pytest.raises(InputError, match=f"^a:1: .*{message}") as caught:
        formats.parse_row(row, "a:1", "responses")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("last", [[], [{"role": "assistant", "content": ""}]])
def test_a_conversation_without_an_answer_has_an_empty_one(last):
    rows = formats.parse_row({"messages": [*turns("a"), *last]}, "a:1")
    assert rows == [Instruction("", "", "", chat("a"))]
    with pytest.raises(InputError, match="a:1: has one response or none"):
        formats.parse_row({"messages": [*turns("a"), *last]}, "a:1", "pairs")


def test_columns_that_are_not_there():
    with pytest.raises(InputError, match="'foo' is not a field"):
        parse_columns("foo=bar")
    with pytest.raises(InputError, match="misses the field 'bar'"):
        formats.parse_row(EDITED, "a:1", columns=parse_columns("prompt=bar"))
