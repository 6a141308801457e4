"""The whole method in one command: ``--config=configs/pipeline.py:VARIANT``.

VARIANT is one of

  tiny      the embedded world, one seed: the paper's arms, SFT on the edits, and three rounds of
            edits followed by token PPO; minutes on two cores
  study     the same with every learner and 5 seeds
  fair      the study in a world that is harder to imitate: the editor repairs fewer mistakes, some
            facts get no feedback, and in two task families one mistake spoils the rest
  cad       a small LLaMA from random weights on your file of edits (give --config.files.edits)
  smollm2   adapters on SmolLM2-135M, steered by your file of edits, on a laptop or Colab (give
            files.edits and sft.flags=model.path=FOLDER)
  llama_7b  the paper's experiment (give files.sft, files.edits, files.preferences, files.prompts,
            and sft.flags=model.path=FOLDER)

``sft``, ``rm``, ``imitate``, ``dpo`` and ``ppo`` each name the config of a command and, in
``defaults``, flags that override it; ``arms.NAME.defaults`` are flags of one arm. ``lora`` applies
to all commands that start from a model. ``run_arms`` selects among the arms of configs/arms.py;
``--config.arms.NAME.learner=…`` or your own config adds arms.
"""

import dataclasses

from configs.arms import ARMS, REWARD_MODELS, ROUNDS
from configs.base import LORA
from configs.fields import Field, add_member, check_argument, collect_fields, make_config
from fgrlhf_jax.data.templates import TEMPLATES
from fgrlhf_jax.functional.reward_losses import LOSSES
from fgrlhf_jax.pipeline.arms import LEARNERS
from fgrlhf_jax.tiny_world.people import FAIR, Rates
from fgrlhf_jax.tiny_world.tasks import WORLDS

_FLAGS = "NAME=VALUE,NAME=VALUE"
_DATA = (
    "edits | edits_K_of_N, the edits of part K of the prompts | preferences | a round; separate "
    "several by commas"
)

GROUPS = {
    "Run": {
        "run_dir": Field("runs/pipeline", "FOLDER; the same command resumes it"),
        "title": Field("", "title of the report"),
        "seed": Field(0, "the first seed", at_least=0),
        "seeds": Field(1, "number of seeds; all start from one SFT model", at_least=1),
        "run_arms": Field(
            "sft_edits,ppo_rlhf,fine_grained,fine_grained_token,three_rounds_then_token",
            "arms to compare; the arms that they depend on are trained and shown too",
        ),
        "workers": Field(
            1, "concurrent stages on shares of the cores; 1 if they share accelerators", at_least=1
        ),
        "model": Field("", 'FOLDER | HUB_ID that all arms start from; "": that of launch.sft'),
        "platforms": Field(
            "",
            "JAX_PLATFORMS of the stages, unless already set: cpu for tiny models, whose workers "
            'would otherwise share one accelerator; "": detected by JAX',
        ),
        "task": Field("", "set by the pipeline itself, for its own stages"),
    },
    "Budget": {
        "budget": Field(
            "",
            "equal budget of every arm's and reward model's training: parameter updates | seconds "
            'of updates; "": as in its config. Does not apply to the initial policy',
            choices=("", "updates", "seconds"),
        ),
        "budget_amount": Field(0.0, "size of the budget", at_least=0),
    },
    "Files": {
        "embedded": Field(False, "use the embedded world, which needs no files"),
        "files.edits": Field("", "FILE of edits"),
        "files.edits_validation": Field("", 'FILE of edits; "": a tenth of files.edits'),
        "files.preferences": Field("", "FILE, for arms that learn from preferences"),
        "files.sft": Field("", 'FILE of instructions; "": both responses of the edits'),
        "files.prompts": Field("", 'FILE of prompts for PPO; "": those of the edits'),
        "files.test": Field("", 'FILE of prompts; "": from half of the held-out edits'),
    },
    "Evaluation": {
        "judge": Field("", 'MODULE:FUNCTION that scores responses; "": no win rates'),
        "judge_name": Field("", 'its name in the report; "": that of its function'),
        "fluency_model": Field(
            "", 'FOLDER of a base model whose log-probability of responses is reported; "": none'
        ),
        "test_prompts": Field(805, "test prompts, at most", at_least=1),
        "answer_batch_size": Field(128, "prompts per batch", at_least=1),
        "table_batch_size": Field(64, "pairs per batch", at_least=1),
        "heatmaps": Field(3, "responses with coloured tokens in the report", at_least=0),
        "report_samples": Field(30, "test prompts whose responses the report shows", at_least=0),
    },
    "All commands": {
        "template": Field("alpaca", "prompt template", choices=TEMPLATES),
        "max_prompt_length": Field(192, "tokens of a prompt, at most", at_least=1),
        "max_new_tokens": Field(300, "tokens of a response, at most", at_least=1),
    },
    "Single commands": {
        name: field
        for stage in ("sft", "rm", "imitate", "dpo", "ppo")
        for name, field in {
            f"{stage}.config": Field("", "config of the command"),
            f"{stage}.defaults": Field("", "flags that override the config"),
            f"{stage}.flags": Field("", f"your flags, {_FLAGS}; they override the defaults"),
        }.items()
    }
    | {"sft.devices": Field(0, "number of CPU devices for SFT; 0: as JAX detects", at_least=0)},
    "Arms": {
        "arms.*.learner": Field("", "learning algorithm", choices=("", *LEARNERS)),
        "arms.*.start": Field("sft", "initial policy: sft, the common one, or an arm"),
        "arms.*.reward": Field(
            "",
            "for ppo, rloo, grpo, distill: a reward model | A,B,C, an ensemble | ARM:ARM[:WEIGHT], "
            "the log-ratio of two policies | oracle",
        ),
        "arms.*.data": Field("edits", f"training data, if it has no reward: {_DATA}"),
        "arms.*.label": Field("", 'its name in the report; "": NAME'),
        "arms.*.defaults": Field("", f"flags that override those of its command: {_FLAGS}"),
        "arms.*.flags": Field(
            "", "your flags, which override the defaults; {ARM}: folder of that arm's policy"
        ),
    },
    "Reward models": {
        "reward_models.*.loss": Field("", "as in launch.train_rm", choices=("", *LOSSES)),
        "reward_models.*.data": Field("edits", f"training data: {_DATA}"),
        "reward_models.*.start": Field("sft", "initial policy: sft or an arm"),
        "reward_models.*.label": Field("", 'its name in the report; "": NAME'),
        "reward_models.*.defaults": Field("", "flags that override those of rm"),
        "reward_models.*.flags": Field("", "your flags, over the defaults; {ARM} as for arms"),
    },
    "Rounds of edits": {
        "rounds.*.policy": Field("", "the arm whose responses are edited"),
        "rounds.*.part": Field("2_of_2", "part of the prompts that it responds to, K_of_N"),
        "rounds.*.greedy": Field(
            False,
            "two responses per prompt, the second decoded greedily; False: one (embedded world: "
            "two) at T = 1",
        ),
    },
    "Embedded world": {
        "world.kind": Field(
            "easy",
            "fair: two more task families; test prompts about facts without feedback, none of them "
            "a reordered training prompt; pipeline.py:fair also sets its editor",
            choices=WORLDS,
        )
    }
    | {
        f"world.{name}": Field(count, "number of distinct prompts", at_least=1)
        for name, count in {
            "sft": 16000,
            "feedback": 6000,
            "ppo": 6000,
            "validation": 500,
            "test": 1500,
        }.items()
    }
    | {
        f"world.rates.{name}": Field(rate, "a rate of tiny_world.people.Rates", at_least=0)
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

# After SFT on edits, a policy keeps its greedy accuracy only with small steps near its start.
_GENTLE = (
    "gamma=0,optimizer.learning_rate=0.0001,optimizer.schedule=linear,optimizer.warmup_steps=5"
)
_SHARP = f"kl.coef=1,reward_normalization=none,{_GENTLE.replace('=0.0001', '=0.0003')}"


def _commands(size: str, **defaults: str) -> dict[str, str]:
    """The config of every command for a model size, and flags that override it."""
    files = {"sft": "sft", "rm": "rm", "imitate": "sft", "dpo": "dpo", "ppo": "ppo"}
    configs = {f"{name}.config": f"configs/{file}.py:{size}" for name, file in files.items()}
    return configs | {f"{name}.defaults": flags for name, flags in defaults.items()}


_TINY_LENGTHS = "data.max_length=32,data.buckets=2"  # at most 10 prompt and 22 response tokens
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
    # Later rounds add little new data, so training them longer costs greedy accuracy. The three
    # rounds have as many updates as sft_edits and sft_longer together.
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
    "arms.sharpened.defaults": _SHARP,
    "arms.edits_sharpened.defaults": _SHARP,
    # Mistakes of greedy decoding are rare in samples; without greedy responses none is corrected.
    "rounds.second_round.greedy": True,
    "rounds.third_round.greedy": True,
    # Gold rewards are a third of a normalized reward model's.
    "arms.oracle.defaults": f"missing_eos=none,kl.coef=0.3,{_GENTLE}",
}
_STUDY = _TINY | {
    "title": "Fine-grained supervision on the embedded world: all arms, five seeds",
    "seeds": 5,
    "test_prompts": 1024,
    "sft.defaults": f"{_TINY_LENGTHS},steps=2400",
    "run_arms": "sft_edits,ppo_rlhf,fine_grained,fine_grained_token,kl_outside,state_action,rloo,"
    "grpo,dpo,ddpo,salt,figa,sft_longer,edits_then_token,edits_then_grpo,edits_then_distill,"
    "three_rounds_then_token,sharpened,edits_sharpened,oracle",
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
