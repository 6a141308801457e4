"""The whole method on one command: ``--config=configs/pipeline.py:VARIANT``.

VARIANT is one of

  tiny      the embedded world, one seed, the paper's arms and the oracle; minutes on two cores
  study     the same with every arm and baseline, and 3 seeds
  cad       a small LLaMA from random weights on your file of edits (give --config.files.edits)
  smollm2   adapters on SmolLM2-135M, steered by your file of edits, on a laptop or Colab (give
            files.edits and sft.flags=model.path=FOLDER)
  llama_7b  the paper's experiment (give files.sft, files.edits, files.preferences, files.prompts,
            and sft.flags=model.path=FOLDER)

``sft``, ``rm``, ``imitate`` and ``ppo`` each name the config of a command and, as ``defaults``, the
flags that differ from it; ``arms.NAME.defaults`` are those of one arm. ``lora`` is of all commands
that start from a model.
"""

import dataclasses

from configs.base import LORA
from configs.fields import Field, check_argument, collect_fields, make_config
from fgrlhf_jax.data.templates import TEMPLATES
from fgrlhf_jax.pipeline.arms import ARMS
from fgrlhf_jax.tiny_world.people import Rates

_FLAGS = "as NAME=VALUE,NAME=VALUE"

GROUPS = {
    "Run": {
        "run_dir": Field("runs/pipeline", "FOLDER; the same command goes on"),
        "title": Field("", "of the report"),
        "seed": Field(0, "the first seed", at_least=0),
        "seeds": Field(1, "number of seeds; all start from one SFT", at_least=1),
        "run_arms": Field(
            "sft_edits,ppo_rlhf,fine_grained,fine_grained_token,oracle", f"of {', '.join(ARMS)}"
        ),
        "workers": Field(
            1,
            "stages at a time; more than 1 only where they do not share accelerators",
            at_least=1,
        ),
        "platforms": Field(
            "",
            "JAX_PLATFORMS of the stages, unless it is set already: cpu for tiny models, whose "
            'workers would else meet on one accelerator; "": what JAX finds',
        ),
        "task": Field("", "set by the pipeline itself, for its own stages"),
    },
    "Files": {
        "embedded": Field(False, "the embedded world, which needs no files"),
        "files.edits": Field("", "FILE of edits"),
        "files.edits_validation": Field("", '"" splits a tenth off the edits'),
        "files.preferences": Field("", "FILE, for the arm ppo_rlhf"),
        "files.sft": Field("", 'FILE of instructions; "" imitates both sides of the edits'),
        "files.prompts": Field("", 'FILE, for PPO; "" takes those of the edits'),
        "files.test": Field("", 'FILE of prompts; "" takes half of the held-out edits\''),
    },
    "Evaluation": {
        "judge": Field("", 'MODULE:FUNCTION that scores responses; "": no win rates'),
        "judge_name": Field("", "its name in the report"),
        "test_prompts": Field(805, "test prompts, at most", at_least=1),
        "answer_batch_size": Field(128, "prompts at a time", at_least=1),
        "table_batch_size": Field(64, "pairs at a time", at_least=1),
        "heatmaps": Field(3, "responses with coloured tokens in the report", at_least=0),
        "report_samples": Field(30, "test prompts whose responses it shows", at_least=0),
    },
    "Of every command": {
        "template": Field("alpaca", "format of a prompt", choices=TEMPLATES),
        "max_prompt_length": Field(192, "tokens of a prompt", at_least=1),
        "max_new_tokens": Field(300, "tokens of a response", at_least=1),
    },
    "Of one command": {
        name: field
        for stage in ("sft", "rm", "imitate", "ppo")
        for name, field in {
            f"{stage}.config": Field("", "its config"),
            f"{stage}.defaults": Field("", f"flags that differ from it, {_FLAGS}"),
            f"{stage}.flags": Field("", "yours, which win over the defaults"),
        }.items()
    }
    | {"sft.devices": Field(0, "CPU devices of SFT; 0: what JAX finds", at_least=0)},
    "Of one arm": {
        name: field
        for arm in ARMS
        if ARMS[arm].reward
        for name, field in {
            f"arms.{arm}.defaults": Field("", "flags that differ from ppo's"),
            f"arms.{arm}.flags": Field("", "yours, which win over all others"),
        }.items()
    },
    "Embedded world": {
        f"world.{name}": Field(count, "distinct prompts", at_least=1)
        for name, count in {
            "sft": 16000,
            "feedback": 6000,
            "ppo": 6000,
            "validation": 500,
            "test": 1500,
        }.items()
    }
    | {
        f"world.rates.{name}": Field(
            rate, "how its people write and judge (tiny_world.people.Rates)", at_least=0
        )
        for name, rate in dataclasses.asdict(Rates()).items()
    },
}
FIELDS = collect_fields(
    GROUPS,
    LORA,
    first="run_dir seeds run_arms workers files.edits files.preferences files.sft files.prompts "
    "files.test judge template max_prompt_length max_new_tokens sft.flags rm.flags imitate.flags "
    "ppo.flags",
)


def get_config(argument: str = "tiny"):
    check_argument(f"pipeline.py:{argument}", argument, VARIANTS)
    config = make_config(FIELDS)
    config.run_dir = f"runs/pipeline_{argument}"
    VARIANTS[argument](config)
    return config


def tiny(config):
    config.embedded = True
    config.title = "Fine-grained supervision on the embedded world"
    config.judge = "fgrlhf_jax.tiny_world.judge:judge"
    config.judge_name = "gold"
    config.template = "plain"
    config.max_prompt_length = 12
    config.max_new_tokens = 22
    config.answer_batch_size = 256
    config.test_prompts = 512
    config.workers = 2
    config.platforms = "cpu"
    config.sft.devices = 2
    # The world's prompts have at most 10 tokens, its responses 22.
    lengths = "data.max_length=32,data.buckets=2"
    config.sft.config = "configs/sft.py:tiny"
    config.sft.defaults = f"{lengths},steps=1500"
    config.rm.config = "configs/rm.py:tiny"
    config.rm.defaults = (
        f"{lengths},model.head_init=zero,steps=600,eval_every=50,patience=3,save_every=0,"
        "optimizer.learning_rate=0.001"
    )
    config.imitate.config = "configs/sft.py:tiny"
    config.imitate.defaults = f"{lengths},steps=400,eval_every=50,optimizer.learning_rate=0.001"
    config.ppo.config = "configs/ppo.py:tiny"
    config.ppo.defaults = "eval_every=5"
    config.arms.ppo_rlhf.defaults = "kl.coef=0.3"
    config.arms.fine_grained.defaults = "kl.coef=0.3"
    config.arms.fine_grained_token.defaults = "kl.coef=0.3"
    config.arms.state_action.defaults = "kl.coef=0.1"
    # Gold is in units of its own: a third of a normalised reward model's.
    config.arms.oracle.defaults = "kl.coef=0.03"
    config.arms.edits_then_token.defaults = "kl.coef=0.3"


def study(config):
    tiny(config)
    config.title = "Fine-grained supervision on the embedded world: all arms, three seeds"
    config.seeds = 3
    config.sft.defaults = config.sft.defaults.replace("steps=1500", "steps=2400")
    config.run_arms = (
        "sft_edits,ppo_rlhf,fine_grained,fine_grained_token,kl_outside,state_action,oracle,"
        "edits_then_token"
    )
    config.test_prompts = 1024


def cad(config):
    config.title = "Film reviews, steered by people's edits"
    config.judge = "fgrlhf_jax.feedback.judges.vader:judge"
    config.judge_name = "VADER"
    config.template = "plain"
    config.max_prompt_length = 48
    config.max_new_tokens = 64
    config.test_prompts = 512
    config.workers = 2
    config.platforms = "cpu"
    config.sft.devices = 2
    lengths = "data.max_length=160"
    config.sft.config = "configs/sft.py:cad"
    config.sft.defaults = lengths
    config.rm.config = "configs/rm.py:cad"
    config.rm.defaults = f"{lengths},steps=200"
    config.imitate.config = "configs/sft.py:cad"
    config.imitate.defaults = f"{lengths},epochs=1,optimizer.learning_rate=0.0005"
    config.ppo.config = "configs/ppo.py:cad"
    config.ppo.defaults = "eval_every=10"
    config.run_arms = "sft_edits,fine_grained,fine_grained_token"


def smollm2(config):
    config.title = "SmolLM2-135M, steered by people's edits"
    config.judge_name = "judge"
    config.template = "chat"
    config.max_prompt_length = 256
    config.max_new_tokens = 64
    config.test_prompts = 64
    config.answer_batch_size = 16
    config.table_batch_size = 8
    config.lora.rank = 16
    config.sft.config = "configs/sft.py:smollm2"
    config.sft.defaults = "data.max_length=384,optimizer.learning_rate=0.0002"
    config.rm.config = "configs/rm.py:smollm2"
    config.rm.defaults = "optimizer.learning_rate=0.0005"
    config.imitate.config = "configs/sft.py:smollm2"
    config.imitate.defaults = config.sft.defaults
    config.ppo.config = "configs/ppo.py:smollm2"
    config.ppo.defaults = "optimizer.learning_rate=0.0001,optimizer.critic_learning_rate=0.0003"
    config.run_arms = "sft_edits,fine_grained,fine_grained_token"


def llama_7b(config):
    config.title = "Fine-grained supervision of LLaMA-7B"
    config.judge = ""
    config.judge_name = "judge"
    config.sft.config = "configs/sft.py:llama_7b"
    config.rm.config = "configs/rm.py:llama_7b"
    config.imitate.config = "configs/sft.py:llama_7b"
    config.ppo.config = "configs/ppo.py:llama_7b"
    config.run_arms = "ppo_rlhf,fine_grained,fine_grained_token"


VARIANTS = {"tiny": tiny, "study": study, "cad": cad, "smollm2": smollm2, "llama_7b": llama_7b}
