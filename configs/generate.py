"""Fields of ``launch.generate``, which samples responses to a file of prompts."""

from configs.common import DTYPE, INT8_CACHE, MESH, MODEL, OVERLONG, OVERWRITE, READING, TEMPLATE
from configs.fields import Field, collect_fields, make_config

GROUPS = {
    "Files": {
        "model": Field("", f'{MODEL}; "": the embedded world\'s, trained if missing'),
        "prompts": Field("", 'FILE; "": prompts of the embedded world'),
        "output": Field("", 'FILE.json in alpaca_eval\'s format; "": print'),
        "overwrite": OVERWRITE,
        "generator": Field("", 'the model\'s name in the output; "": model'),
        "limit": Field(0, "number of prompts; 0: all", at_least=0),
    },
    "Sampling": {
        "temperature": Field(0.0, "sampling temperature; 0: greedy", at_least=0),
        "top_k": Field(0, "sample from the k most likely tokens; 0: from all", at_least=0),
        "top_p": Field(
            1.0, "sample from the smallest set of this probability", at_least=1e-6, at_most=1
        ),
        "samples": Field(1, "responses per prompt", at_least=1),
        "greedy_last": Field(False, "decode the last of them greedily"),
        "seed": Field(0, "seed of sampling", at_least=0),
        "max_new_tokens": Field(300, "tokens of a response, at most", at_least=1),
    },
    "Reward models": {
        "guide": Field(
            "",
            "run_dir of launch.train_rm with model.head=action: sample every token from "
            "p(token) exp(reward / guide_beta)",
        ),
        "guide_beta": Field(
            1.0, "weight of the KL from the model, in rewards per nat, as kl.coef", at_least=1e-6
        ),
        "reward_model": Field("", "run_dir of launch.train_rm: rank the responses to each prompt"),
        "best_of": Field(
            0, "samples per prompt, of which reward_model selects the best; 0: samples", at_least=0
        ),
    },
    "Prompts": {
        "template": TEMPLATE,
        "max_prompt_length": Field(256, "tokens of a prompt, at most", at_least=1),
        "overlong": Field("truncate", "truncate or drop longer prompts", choices=OVERLONG),
    },
    "Devices and precision": {
        "batch_size": Field(32, "prompts per batch", at_least=1),
        "mesh": MESH,
        "dtype": DTYPE,
        "int8_cache": INT8_CACHE,
    },
}
FIELDS = collect_fields(
    GROUPS,
    READING,
    first="model prompts output limit temperature samples seed max_new_tokens template guide "
    "guide_beta reward_model best_of batch_size",
)


def get_config():
    return make_config(FIELDS)
