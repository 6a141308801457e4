"""Responses to a file of prompts: what ``launch.generate`` needs."""

from configs.base import DTYPE, MESH, MODEL, OVERLONG, UNROLL
from configs.fields import Field, group, make_config
from fgrlhf_jax.data.templates import TEMPLATES

FIELDS = {
    **group(
        "Files",
        {
            "model": Field(
                "", f'{MODEL}; "": the embedded world\'s, trained if missing', first=True
            ),
            "prompts": Field("", 'FILE; "": prompts of the embedded world', first=True),
            "output": Field(
                "", 'FILE.json in the format of alpaca_eval; "" prints', first=True
            ),
            "generator": Field("", 'the model\'s name in the file; "" is model'),
            "limit": Field(0, "prompts; 0: all", at_least=0, first=True),
        },
    ),
    **group(
        "Sampling",
        {
            "temperature": Field(0.0, "0: greedy", at_least=0, first=True),
            "top_k": Field(0, "likeliest tokens to sample from; 0: all", at_least=0),
            "top_p": Field(
                1.0, "share of the probability to sample from", at_least=1e-6, at_most=1
            ),
            "samples": Field(1, "responses a prompt", at_least=1, first=True),
            "seed": Field(0, "of sampling", at_least=0, first=True),
            "max_new_tokens": Field(300, "tokens of a response", at_least=1, first=True),
        },
    ),
    **group(
        "Prompts",
        {
            "template": Field(
                "",
                'format of a prompt; "": what the model was fine-tuned with here',
                choices=("", *TEMPLATES),
                first=True,
            ),
            "max_prompt_length": Field(256, "tokens of a prompt", at_least=1),
            "overlong": Field("truncate", "what becomes of longer prompts", choices=OVERLONG),
        },
    ),
    **group(
        "Devices and precision",
        {
            "batch_size": Field(32, "prompts at a time", at_least=1, first=True),
            "unroll": UNROLL,
            "mesh": MESH,
            "dtype": DTYPE,
        },
    ),
}


def get_config():
    return make_config(FIELDS)
