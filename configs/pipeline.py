"""The whole method on one command: ``--config=configs/pipeline.py:VARIANT``.

VARIANT is one of

  tiny      the embedded world, one seed: the paper's arms, SFT on the edits, and three rounds of
            edits with token PPO after them; minutes on two cores
  study     the same with every learner, and 5 seeds
  fair      the study in a world that is harder to imitate: an editor who sees and repairs less,
            facts that nobody gives feedback on, two families in which a mistake goes far
  cad       a small LLaMA from random weights on your file of edits (give --config.files.edits)
  smollm2   adapters on SmolLM2-135M, steered by your file of edits, on a laptop or Colab (give
            files.edits and sft.flags=model.path=FOLDER)
  llama_7b  the paper's experiment (give files.sft, files.edits, files.preferences, files.prompts,
            and sft.flags=model.path=FOLDER)

``sft``, ``rm``, ``imitate`` and ``ppo`` each name the config of a command and, as ``defaults``, the
flags that differ from it; ``arms.NAME.defaults`` are those of one arm. ``lora`` is of all commands
that start from a model. ``run_arms`` chooses among the arms of
configs/arms.py; ``--config.arms.NAME.learner=…`` or a config of yours adds to them.
"""

import dataclasses

from configs.arms import ARMS, REWARD_MODELS, ROUNDS
from configs.base import LORA
from configs.fields import Field, add_member, check_argument, collect_fields, make_config
from fgrlhf_jax.data.templates import TEMPLATES
from fgrlhf_jax.functional.reward_losses import LOSSES
from fgrlhf_jax.pipeline.arms import LEARNERS
from fgrlhf_jax.tiny_world.people import FAIR, Rates
from fgrlhf_jax.tiny_world.tasks import KINDS_OF_WORLD

_FLAGS = "as NAME=VALUE,NAME=VALUE"
_DATA = (
    "edits | edits_K_of_N, those on a part of the prompts | preferences | a round; several by "
    "commas"
)

GROUPS = {
    "Run": {
        "run_dir": Field("runs/pipeline", "FOLDER; the same command goes on"),
        "title": Field("", "of the report"),
        "seed": Field(0, "the first seed", at_least=0),
        "seeds": Field(1, "number of seeds; all start from one SFT", at_least=1),
        "run_arms": Field(
            "sft_edits,ppo_rlhf,fine_grained,fine_grained_token,three_rounds_then_token",
            "arms to compare; those that they are made from are trained and shown too",
        ),
        "workers": Field(
            1, "stages at a time; more than 1 only where they do not share accelerators", at_least=1
        ),
        "model": Field("", 'FOLDER | HUB_ID that all arms start from; "": that of launch.sft'),
        "platforms": Field(
            "",
            "JAX_PLATFORMS of the stages, unless it is set already: cpu for tiny models, whose "
            'workers would else meet on one accelerator; "": what JAX finds',
        ),
        "task": Field("", "set by the pipeline itself, for its own stages"),
    },
    "Budget": {
        "budget": Field(
            "",
            "what every training of an arm or a reward model gets alike: updates of the parameters "
            '| seconds of them; "": what its config says',
            choices=("", "updates", "seconds"),
        ),
        "budget_amount": Field(0.0, "how many", at_least=0),
    },
    "Files": {
        "embedded": Field(False, "the embedded world, which needs no files"),
        "files.edits": Field("", "FILE of edits"),
        "files.edits_validation": Field("", '"" splits a tenth off the edits'),
        "files.preferences": Field("", "FILE, for arms that learn from preferences"),
        "files.sft": Field("", 'FILE of instructions; "" imitates both sides of the edits'),
        "files.prompts": Field("", 'FILE, for PPO; "" takes those of the edits'),
        "files.test": Field("", 'FILE of prompts; "" takes half of the held-out edits\''),
    },
    "Evaluation": {
        "judge": Field("", 'MODULE:FUNCTION that scores responses; "": no win rates'),
        "judge_name": Field("", 'its name in the report; "": that of its function'),
        "fluency_model": Field(
            "", 'FOLDER of an untouched model that says how likely responses are; "": none'
        ),
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
        for stage in ("sft", "rm", "imitate", "dpo", "ppo")
        for name, field in {
            f"{stage}.config": Field("", "its config"),
            f"{stage}.defaults": Field("", f"flags that differ from it, {_FLAGS}"),
            f"{stage}.flags": Field("", "yours, which win over the defaults"),
        }.items()
    }
    | {"sft.devices": Field(0, "CPU devices of SFT; 0: what JAX finds", at_least=0)},
    "Arms": {
        "arms.*.learner": Field("", "how it learns", choices=("", *LEARNERS)),
        "arms.*.start": Field("sft", "the policy it starts from: sft, the first one, or an arm"),
        "arms.*.reward": Field("", "of ppo, rloo, grpo, distill: a reward model | oracle"),
        "arms.*.data": Field("edits", f"what it learns from where it has no reward: {_DATA}"),
        "arms.*.label": Field("", 'its name in the report; "": NAME'),
        "arms.*.defaults": Field("", f"flags that differ from its command's above, {_FLAGS}"),
        "arms.*.flags": Field("", "yours, which win; {ARM} is the folder of that arm's policy"),
    },
    "Reward models": {
        "reward_models.*.loss": Field("", "as in launch.train_rm", choices=("", *LOSSES)),
        "reward_models.*.data": Field("edits", f"what it learns from: {_DATA}"),
        "reward_models.*.start": Field("sft", "the policy it starts from: sft or an arm"),
        "reward_models.*.label": Field("", 'its name in the report; "": NAME'),
        "reward_models.*.defaults": Field("", "flags that differ from rm's"),
        "reward_models.*.flags": Field("", "yours, which win; {ARM} as above"),
    },
    "Rounds of edits": {
        "rounds.*.policy": Field("", "the arm whose responses to a part of the prompts are edited"),
        "rounds.*.part": Field("2_of_2", "that part: K_of_N"),
        "rounds.*.greedy": Field(
            False,
            "two responses a prompt, the second decoded greedily; else one (in the embedded world "
            "two), at T = 1",
        ),
    },
    "Embedded world": {
        "world.kind": Field(
            "easy",
            "fair: two families more, test prompts about facts that no feedback is on, and none of "
            "the same words in another order; pipeline.py:fair has its editor too",
            choices=KINDS_OF_WORLD,
        )
    }
    | {
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
    for group, members in {"arms": ARMS, "reward_models": REWARD_MODELS, "rounds": ROUNDS}.items():
        for name, values in members.items():
            add_member(config, FIELDS, group, name, **values)
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
    config.arms.sft_longer.defaults = "steps=800"  # with those before, as many as three rounds
    config.dpo.config = "configs/dpo.py:tiny"
    config.ppo.config = "configs/ppo.py:tiny"
    config.ppo.defaults = "eval_every=5"
    config.arms.ppo_rlhf.defaults = "kl.coef=0.3"
    config.arms.fine_grained.defaults = "kl.coef=0.3"
    config.arms.fine_grained_token.defaults = "kl.coef=0.3"
    config.arms.state_action.defaults = "kl.coef=0.1"
    # A policy that imitates already keeps its greedy accuracy only with small steps near its start.
    gentle = (
        "gamma=0,optimizer.learning_rate=0.0001,optimizer.schedule=linear,optimizer.warmup_steps=5"
    )
    config.arms.rloo.defaults = config.arms.grpo.defaults = "kl.coef=0.1"
    config.arms.edits_then_grpo.defaults = f"kl.coef=0.3,{gentle}"
    config.arms.edits_then_distill.defaults = f"kl.coef=0.3,{gentle}"
    config.arms.edits_then_token.defaults = f"kl.coef=1,{gentle}"
    config.arms.three_rounds_then_token.defaults = f"kl.coef=1,{gentle}"
    # What greedy decoding gets wrong is seldom among samples, so else nobody would correct it.
    config.rounds.second_round.greedy = config.rounds.third_round.greedy = True
    # Gold is in units of its own: a third of a normalised reward model's.
    config.arms.oracle.defaults += f",kl.coef=0.3,{gentle}"


def study(config):
    tiny(config)
    config.title = "Fine-grained supervision on the embedded world: all arms, five seeds"
    config.seeds = 5
    config.sft.defaults = config.sft.defaults.replace("steps=1500", "steps=2400")
    config.run_arms = (
        "sft_edits,ppo_rlhf,fine_grained,fine_grained_token,kl_outside,state_action,rloo,grpo,dpo,"
        "ddpo,salt,figa,sft_longer,edits_then_token,edits_then_grpo,edits_then_distill,"
        "three_rounds_then_token,oracle"
    )
    config.test_prompts = 1024


def cad(config):
    config.title = "Film reviews, steered by people's edits"
    config.judge = "fgrlhf_jax.feedback.judges.vader:judge"
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
    config.dpo.config = "configs/dpo.py:cad"
    config.dpo.defaults = f"{lengths},epochs=1,optimizer.learning_rate=0.0001"
    config.ppo.config = "configs/ppo.py:cad"
    config.ppo.defaults = "eval_every=10"
    config.run_arms = "sft_edits,fine_grained,fine_grained_token"


def smollm2(config):
    config.title = "SmolLM2-135M, steered by people's edits"
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
    config.dpo.config = "configs/dpo.py:smollm2"
    config.ppo.config = "configs/ppo.py:smollm2"
    config.ppo.defaults = "optimizer.learning_rate=0.0001,optimizer.critic_learning_rate=0.0003"
    config.run_arms = "sft_edits,fine_grained,fine_grained_token"


def llama_7b(config):
    config.title = "Fine-grained supervision of LLaMA-7B"
    config.judge = ""
    config.sft.config = "configs/sft.py:llama_7b"
    config.rm.config = "configs/rm.py:llama_7b"
    config.imitate.config = "configs/sft.py:llama_7b"
    config.dpo.config = "configs/dpo.py:llama_7b"
    config.ppo.config = "configs/ppo.py:llama_7b"
    config.run_arms = "ppo_rlhf,fine_grained,fine_grained_token"


def fair(config):
    study(config)
    config.title += ", fair world"
    config.world.kind = "fair"
    config.world.rates.update(dataclasses.asdict(FAIR))


VARIANTS = {
    "tiny": tiny,
    "study": study,
    "fair": fair,
    "cad": cad,
    "smollm2": smollm2,
    "llama_7b": llama_7b,
}
