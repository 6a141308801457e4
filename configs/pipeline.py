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
            1,
            "stages at a time, each on its share of the cores; 1 where they share accelerators",
            at_least=1,
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
            '| seconds of them; "": what its config says. The first policy is outside of it',
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
        "arms.*.reward": Field(
            "",
            "of ppo, rloo, grpo, distill: a reward model | A,B,C, an ensemble of them | "
            "ARM:ARM[:WEIGHT], the log-ratio of two policies | oracle",
        ),
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


# A policy that imitates already keeps its greedy accuracy only with small steps near its start.
_GENTLE = (
    "gamma=0,optimizer.learning_rate=0.0001,optimizer.schedule=linear,optimizer.warmup_steps=5"
)


def _commands(size: str, **defaults: str) -> dict[str, str]:
    """The configs of a size for every command, and the flags that differ from them."""
    files = {"sft": "sft", "rm": "rm", "imitate": "sft", "dpo": "dpo", "ppo": "ppo"}
    configs = {f"{name}.config": f"configs/{file}.py:{size}" for name, file in files.items()}
    return configs | {f"{name}.defaults": flags for name, flags in defaults.items()}


_TINY_LENGTHS = "data.max_length=32,data.buckets=2"  # a prompt has at most 10, a response 22
_TINY = {
    "embedded": True,
    "title": "Fine-grained supervision on the embedded world",
    "judge": "fgrlhf_jax.tiny_world.judge:judge",
    "judge_name": "gold",
    "template": "plain",
    "max_prompt_length": 12,
    "max_new_tokens": 22,
    "answer_batch_size": 256,
    "test_prompts": 512,
    "workers": 2,
    "platforms": "cpu",
    "sft.devices": 2,
    **_commands(
        "tiny",
        sft=f"{_TINY_LENGTHS},steps=1500",
        rm=f"{_TINY_LENGTHS},model.head_init=zero,steps=600,eval_every=50,patience=3,save_every=0,"
        "optimizer.learning_rate=0.001",
        imitate=f"{_TINY_LENGTHS},steps=400,eval_every=50,optimizer.learning_rate=0.001",
        ppo="eval_every=5",
    ),
    # Later rounds bring little that is new: learned longer, they cost greedy accuracy. The three
    # rounds have as many updates as SFT on the edits that goes on.
    "arms.sft_two_rounds.defaults": "steps=200",
    "arms.sft_three_rounds.defaults": "steps=200",
    "arms.sft_longer.defaults": "steps=400",
    "arms.ppo_rlhf.defaults": "kl.coef=0.3",
    "arms.fine_grained.defaults": "kl.coef=0.3",
    "arms.fine_grained_token.defaults": "kl.coef=0.3",
    "arms.state_action.defaults": "kl.coef=0.1",
    "arms.rloo.defaults": "kl.coef=0.1",
    "arms.grpo.defaults": "kl.coef=0.1",
    "arms.edits_then_grpo.defaults": f"kl.coef=0.3,{_GENTLE}",
    "arms.edits_then_distill.defaults": f"kl.coef=0.3,{_GENTLE}",
    "arms.edits_then_token.defaults": f"kl.coef=1,{_GENTLE}",
    "arms.three_rounds_then_token.defaults": f"kl.coef=1,{_GENTLE}",
    # What greedy decoding gets wrong is seldom among samples, so else nobody would correct it.
    "rounds.second_round.greedy": True,
    "rounds.third_round.greedy": True,
    # Gold is in units of its own: a third of a normalised reward model's.
    "arms.oracle.defaults": f"missing_eos=none,kl.coef=0.3,{_GENTLE}",
}
_STUDY = _TINY | {
    "title": "Fine-grained supervision on the embedded world: all arms, five seeds",
    "seeds": 5,
    "test_prompts": 1024,
    "sft.defaults": f"{_TINY_LENGTHS},steps=2400",
    "run_arms": "sft_edits,ppo_rlhf,fine_grained,fine_grained_token,kl_outside,state_action,rloo,"
    "grpo,dpo,ddpo,salt,figa,sft_longer,edits_then_token,edits_then_grpo,edits_then_distill,"
    "three_rounds_then_token,oracle",
}
VARIANTS = {
    "tiny": _TINY,
    "study": _STUDY,
    "fair": _STUDY
    | {"title": f"{_STUDY['title']}, fair world", "world.kind": "fair"}
    | {f"world.rates.{name}": rate for name, rate in dataclasses.asdict(FAIR).items()},
    "cad": {
        "title": "Film reviews, steered by people's edits",
        "judge": "fgrlhf_jax.feedback.judges.vader:judge",
        "template": "plain",
        "max_prompt_length": 48,
        "max_new_tokens": 64,
        "test_prompts": 512,
        "workers": 2,
        "platforms": "cpu",
        "sft.devices": 2,
        **_commands(
            "cad",
            sft="data.max_length=160",
            rm="data.max_length=160,steps=200",
            imitate="data.max_length=160,epochs=1,optimizer.learning_rate=0.0005",
            dpo="data.max_length=160,epochs=1,optimizer.learning_rate=0.0001",
            ppo="eval_every=10",
        ),
        "run_arms": "sft_edits,fine_grained,fine_grained_token",
    },
    "smollm2": {
        "title": "SmolLM2-135M, steered by people's edits",
        "template": "chat",
        "max_prompt_length": 256,
        "max_new_tokens": 64,
        "test_prompts": 64,
        "answer_batch_size": 16,
        "table_batch_size": 8,
        "lora.rank": 16,
        **_commands(
            "smollm2",
            sft="data.max_length=384,optimizer.learning_rate=0.0002",
            rm="optimizer.learning_rate=0.001",
            imitate="data.max_length=384,optimizer.learning_rate=0.0002",
            dpo="optimizer.learning_rate=0.0001",
            ppo="optimizer.learning_rate=0.0001,optimizer.critic_learning_rate=0.0003",
        ),
        "run_arms": "sft_edits,fine_grained,fine_grained_token",
    },
    "llama_7b": {
        "title": "Fine-grained supervision of LLaMA-7B",
        **_commands("llama_7b"),
        "run_arms": "ppo_rlhf,fine_grained,fine_grained_token",
    },
}


def get_config(argument: str = "tiny"):
    check_argument(f"pipeline.py:{argument}", argument, VARIANTS)
    config = make_config(FIELDS)
    for group, members in {"arms": ARMS, "reward_models": REWARD_MODELS, "rounds": ROUNDS}.items():
        for name, values in members.items():
            add_member(config, FIELDS, group, name, **values)
    config.update_from_flattened_dict({"run_dir": f"runs/pipeline_{argument}"} | VARIANTS[argument])
    return config
