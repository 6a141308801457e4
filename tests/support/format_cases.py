"""Rows in the layouts of published data sets, with the records expected from them."""

from fgrlhf_jax.data.records import Edit, Instruction, Message, Preference

SKY = "What color is the sky?"


def turns(*texts: str, system: str = "") -> list[dict[str, str]]:
    """Alternating messages of user and assistant, after an optional system message."""
    head = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant") * len(texts)
    return head + [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]


def chat(*texts: str, system: str = "") -> tuple[Message, ...]:
    return tuple(Message(**turn) for turn in turns(*texts, system=system))


def entry(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


def pair(better: str = "Blue.", worse: str = "Green.", *messages: Message, prompt: str = ""):
    return Preference(prompt, "", better, worse, 1, messages=messages)


BLUE, GREEN = [{"role": "assistant", "content": text} for text in ("Blue.", "Green.")]
WHY = {"role": "assistant", "content": "Why?"}
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
    "TRL preference": ({"prompt": SKY, "chosen": "Blue.", "rejected": "Green."}, pair(prompt=SKY)),
    "TRL preference, conversational": (
        {"prompt": turns("Hi", "Hello", SKY), "chosen": [BLUE], "rejected": [GREEN]},
        pair("Blue.", "Green.", *MANY),
    ),
    "TRL answers of several turns": (
        {"prompt": turns(SKY)}
        | {"chosen": [WHY, *turns("So."), BLUE], "rejected": [WHY, *turns("So."), GREEN]},
        pair("Blue.", "Green.", *chat(SKY, "Why?", "So.")),
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
        {"system_prompt": "Be brief.", "prompt": SKY, "chosen": "Blue.", "rejected": "Green."},
        pair("Blue.", "Green.", *chat(SKY, system="Be brief.")),
    ),
    "UltraFeedback binarized": (ULTRA, pair("Blue.", "Green.", *chat(SKY))),
    "HH-RLHF": (
        {"chosen": f"{HUMAN} Blue.", "rejected": f"{HUMAN} Green."},
        pair("Blue.", "Green.", *MANY),
    ),
    "HH-RLHF, stripped": (
        {"chosen": f"{HUMAN.strip()} Blue.", "rejected": f"{HUMAN.strip()} Green."},
        pair("Blue.", "Green.", *MANY),
    ),
    "HH-RLHF with Windows line ends": (
        {"chosen": f"{HUMAN} Blue.".replace("\n", "\r\n")}
        | {"rejected": f" {HUMAN} Green.".replace("\n", "\r\n")},
        pair("Blue.", "Green.", *MANY),
    ),
    "full-hh-rlhf": (
        {"prompt": HUMAN, "response": " Blue.", "chosen": " Blue.", "rejected": " Green."},
        pair("Blue.", "Green.", *MANY),
    ),
    "HH-RLHF with the human's turn as prompt": (
        {"prompt": "\n\nHuman: Hi", "chosen": "\n\nAssistant: Blue."}
        | {"rejected": "\n\nAssistant: Green."},
        pair("Blue.", "Green.", *chat("Hi")),
    ),
    "a prompt that both texts repeat": (
        {"prompt": SKY, "chosen": f"{SKY} Blue.", "rejected": f"{SKY}\nRed."},
        Preference(SKY, "", " Blue.", "\nRed.", 1),
    ),
    "a short prompt that both texts begin with": (
        {"prompt": "Hi", "chosen": "Hi there.", "rejected": "Hi you."},
        Preference("Hi", "", "Hi there.", "Hi you.", 1),
    ),
    "a prompt that speaks of a user and a bot": (
        {"chosen": "Is a user a bot? No.", "rejected": "Is a user a bot? Yes."},
        Preference("Is a user a bot?", "", " No.", " Yes.", 1),
    ),
    "OpenAI preference": (
        {"input": {"messages": turns("Hi", "Hello", SKY), "tools": []}}
        | {"preferred_output": [BLUE], "non_preferred_output": [GREEN]},
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
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": SKY}]},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "Blue."}]},
            ]
        },
        Instruction("", "", "Blue.", chat(SKY)),
    ),
    "ShareGPT": (
        {
            "id": "x",
            "conversations": [entry("system", ""), entry("human", SKY), entry("gpt", "Blue.")],
        },
        Instruction("", "", "Blue.", chat(SKY)),
    ),
    "ShareGPT column by column": (
        {"conversations": {"from": ["human", "gpt"], "value": [SKY, "Blue."]}},
        Instruction("", "", "Blue.", chat(SKY)),
    ),
    "ShareGPT preference of LLaMA-Factory": (
        {"conversations": [entry("human", SKY)]}
        | {"chosen": entry("gpt", "Blue."), "rejected": entry("gpt", "Green.")},
        pair("Blue.", "Green.", *chat(SKY)),
    ),
    "SWIFT text": (
        {"messages": [*turns(SKY), BLUE], "rejected_response": "Green."},
        pair("Blue.", "Green.", *chat(SKY)),
    ),
    "SWIFT messages": (
        {"messages": [*turns(SKY), BLUE], "rejected_messages": [*turns(SKY), GREEN]},
        pair("Blue.", "Green.", *chat(SKY)),
    ),
    "LLaMA-Factory's history": (
        {"instruction": SKY, "input": "", "output": "Blue.", "systemPrompt": "Be brief."}
        | {"history": [["Hi", "Hello"]]},
        Instruction("", "", "Blue.", chat("Hi", "Hello", SKY, system="Be brief.")),
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
    "a response that a server cut": (
        {"prompt": SKY, "response": "It is", "finish_reason": "length"},
        Instruction(SKY, "", "It is", finished=False),
    ),
    "Dolly": (
        {"instruction": SKY, "input": " ", "context": "A text.", "response": "Blue."},
        Instruction(SKY, "A text.", "Blue."),
    ),
    "an edit whose line ends a browser changed": (
        {"instruction": SKY, "original": "Green.\r\nOr so.", "edited": "Blue.\nOr so."},
        Edit(SKY, "", "Green.\r\nOr so.", "Blue.\r\nOr so."),
    ),
    "an edit of other line ends and in another normal form": (
        {"instruction": SKY, "original": "Vert fonce\u0301.\r\nOr\nso."}
        | {"edited": "Bleu fonc\u00e9.\nOr\nso."},
        Edit(SKY, "", "Vert fonce\u0301.\r\nOr\nso.", "Bleu fonce\u0301.\r\nOr\nso."),
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

TREE = [
    {"message_id": "p", "parent_id": None, "role": "prompter", "text": "Hi", "rank": None},
    {"message_id": "b", "parent_id": "p", "role": "assistant", "text": "No.", "rank": 1},
    {"message_id": "a", "parent_id": "p", "role": "assistant", "text": "Hello", "rank": 0},
    {"message_id": "q", "parent_id": "a", "role": "prompter", "text": SKY, "rank": None},
    {"message_id": "c", "parent_id": "q", "role": "assistant", "text": "Blue.", "rank": None},
    {"message_id": "d", "parent_id": "q", "role": "assistant", "text": "x", "deleted": True},
]
