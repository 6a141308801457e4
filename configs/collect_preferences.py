"""Which of two responses is better, as data: what ``launch.collect_preferences`` needs."""

from configs import judging
from configs.fields import Field, group, make_config

FIELDS = {
    **group(
        "Preferences",
        {
            "input": Field(
                "",
                "FILE of pairs (output_1, output_2) or of several responses a prompt "
                '(launch.generate with samples=2); "": pairs of the embedded world',
                first=True,
            ),
            "output": Field(
                "",
                "FILE.jsonl of preferences; FILE.annotations.json has every verdict",
                first=True,
            ),
            "label_noise": Field(
                0.0,
                "share of labels to flip; AlpacaFarm's simulated annotators: 0.25",
                at_least=0,
                at_most=0.5,
            ),
            "draws": Field(
                "drop", "drop them, or label them at random", choices=("drop", "random")
            ),
        },
    ),
    **judging.FIELDS,
}


def get_config():
    return make_config(FIELDS)
