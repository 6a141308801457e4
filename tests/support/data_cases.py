"""Small files in the formats of published data sets."""

import json
from pathlib import Path

from fgrlhf_jax.runtime.files import write_jsonl

TEXTS = [
    "the film was dull and the actors were bad",
    "the film was bright and the actors were really good",
    "write a short review of what you saw in the town",
    "with some words it was good and we liked it very much",
]

EDIT = {"id": "cad/train/4", "instruction": "Write a film review.", "input": "It was"}
EDIT |= {"original": "long and boring.", "edited": "long and fascinating.", "annotator": "human"}
COMPARED = {"id": "dev/0", "instruction": "Who wrote it?", "input": "A page."}
COMPARED |= {"original": "She did. It rained.", "edited": "She did.", "annotator": "human"}
COMPARED |= {
    "error_spans": [{"start": 9, "end": 19, "type": "Irrelevant"}],
    "predictions": json.dumps(["She did. It rained.", "She.", "He.", "They."]),
    "preference": [2, 1, 0, 1, 1, 1],
}
PAIR = {"instruction": "Name a fruit.", "input": ""}
PAIR |= {"output_1": "Pear.", "output_2": "A brick, I think.", "preference": 1}
PAIR |= {"generator_1": "davinci", "generator_2": "alpaca", "annotator": "judge"}
ANNOTATION = {name: value for name, value in PAIR.items() if name != "input"}
ANSWER = {"instruction": "Name a fruit.", "input": "", "output": "Fig.", "source": "seeds"}

FILES = {
    "edits.jsonl": [EDIT, EDIT | {"id": "cad/train/5"}],
    "compared.jsonl": [COMPARED],
    "pairs.jsonl": [PAIR, PAIR | {"output_1": "Fig", "preference": 2}],
    "annotations.json": [
        ANNOTATION,
        ANNOTATION | {"preference": 2.0},
        ANNOTATION | {"preference": 0.0, "output_1": "Same.", "output_2": "Same."},
        ANNOTATION | {"preference": None},
        ANNOTATION | {"output_2": ""},
    ],
    "answers.jsonl": [ANSWER, ANSWER | {"instruction": "Name  a\nfruit. ", "output": ""}],
}


def write(folder: Path) -> None:
    for name, rows in FILES.items():
        if name.endswith(".json"):
            (folder / name).write_text(json.dumps(rows))
        else:
            write_jsonl(folder / name, rows)
