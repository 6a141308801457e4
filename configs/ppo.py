"""PPO, RLOO, GRPO, distillation: ``--config=configs/ppo.py:MODEL[,LEVEL]``.

MODEL is one of

  tiny      on the embedded world, after launch.sft and launch.train_rm at their defaults
  cad       the small LLaMA of sft.py:cad and rm.py:cad (give policy, reward_model and prompts)
  smollm2   SmolLM2-135M (give policy, reward_model and prompts)
  llama_7b  AlpacaFarm's setting for LLaMA-7B on 8 x 80 GB (give policy, reward_model, prompts)
  llama_7b_lora  the same by adapters, with smaller rollouts, on one device of 80 GB
  llama3_2_1b    Llama-3.2-1B by adapters on one device of 16 GB

and LEVEL is token (default) or sequence: what the reward model pays for.
"""

from configs import common
from configs.base import CHECKPOINTS, DEVICES, LORA, OPTIMIZER, RUN
from configs.fields import Field, check_argument, collect_fields
from configs.models import make_model_config
from fgrlhf_jax.data.templates import TEMPLATES
from fgrlhf_jax.functional.policy_losses import KL_ESTIMATORS, MISSING_EOS
from fgrlhf_jax.models.sizes import SIZES
from fgrlhf_jax.ppo.algorithm import ALGORITHMS

LEVELS = ("token", "sequence")

GROUPS = {
    "Models and rewards": {
        "policy": Field("", f"{common.MODEL} of the policy and its reference"),
        "reward_model": Field("", common.REWARD_MODEL),
        "ensemble_penalty": common.ENSEMBLE_PENALTY,
        "level": Field("token", "what the reward model rewards", choices=LEVELS),
        "reward_function": Field("", "MODULE:FUNCTION in place of a reward model"),
        "judge": Field("", "MODULE:FUNCTION that scores validation responses"),
        "critic": Field(
            "separate",
            "of ppo: a copy of the reward model's backbone | a head on the policy",
            choices=("separate", "shared"),
        ),
        "reward_normalization": Field(
            "samples",
            "what makes rewards about one unit a response: samples of the policy before PPO | "
            "what is stored with the reward model | nothing",
            choices=("samples", "reward_model", "none"),
        ),
        "size": Field("tiny", "architecture in launch.plan without paths", choices=tuple(SIZES)),
    },
    "Data": {
        "prompts": Field("", "FILE of prompts, as train of SFT; responses are not read"),
        "validation": Field("", 'the same; "" splits validation_share off prompts'),
        "validation_share": Field(0.05, "share of the prompts", at_least=0, at_most=1),
        "validation_prompts": Field(64, "prompts of an evaluation, at most", at_least=1),
        "ptx_edits": Field("", "FILE of edits or demonstrations to imitate, as train of SFT"),
        "data.template": Field(
            "",
            'format of a prompt; "": the reward model\'s, or else as in launch.generate',
            choices=("", *TEMPLATES),
        ),
        "data.max_prompt_length": Field(192, "tokens of a prompt", at_least=1),
        "data.max_new_tokens": Field(300, "tokens of a response", at_least=1),
        "data.overlong": Field("drop", "what becomes of longer prompts", choices=common.OVERLONG),
    },
    "Rollouts and updates": {
        "steps": Field(80, "rollouts, each with its updates", at_least=1),
        "rollout_batch_size": Field(512, "responses a step, all samples of a prompt", at_least=1),
        "samples_per_prompt": Field(
            0, "responses to each prompt; 0: 4 for rloo and grpo, else 1", at_least=0
        ),
        "minibatch_size": Field(256, "of them an update", at_least=1),
        "micro_batch_size": Field(
            0,
            "of the longest at a time, more of shorter ones, gradients summed; 0: all",
            at_least=0,
        ),
        "ppo_epochs": Field(2, "passes over a rollout", at_least=1),
        "sampling.temperature": Field(1.0, "of sampling", at_least=1e-6),
        "sampling.int8_cache": common.INT8_CACHE,
    },
    "Algorithm": {
        "algorithm": Field(
            "ppo",
            "against a critic's values | other samples' returns to go | rewards normalized over "
            "a prompt's samples | towards the reference times exp(reward / kl.coef); only ppo has "
            "a critic",
            choices=ALGORITHMS,
        ),
        # Of rewards that are worth about one unit a response: 0.05 to 0.3 were the best of every
        # sweep, and 0.03 left the language. AlpacaFarm's 0.0067 is for rewards of another scale.
        "kl.coef": Field(0.1, "KL penalty, in rewards a nat", at_least=0),
        "kl.estimator": Field("k1", "k1_clipped: AlpacaFarm's", choices=KL_ESTIMATORS),
        "kl.in_reward": Field(True, "False: rewards without a KL term, as in the paper"),
        "kl.target": Field(0.0, "nats a response to adapt kl.coef to; 0: fixed", at_least=0),
        "kl.horizon": Field(10000.0, "responses in which kl.coef adapts", at_least=1e-6),
        "kl.limit": Field(0.0, "nats a response at which a run ends; 0: never", at_least=0),
        "gamma": Field(1.0, "discount of a token", at_least=0),
        "gae_lambda": Field(1.0, "lambda of the advantages", at_least=0),
        "clip_ratio": Field(0.2, "the ratio stays in 1 ± this", at_least=1e-6),
        "value_clip_ratio": Field(
            0.2, "the value stays within ± this of the rollout's", at_least=1e-6
        ),
        "value_coef": Field(
            0.1, "weight of the value loss in gradients of states that both share", at_least=0
        ),
        "ptx_weight": Field(
            0.0,
            "weight of the cross-entropy of ptx_edits (PPO-ptx), minibatch_size of them an update",
            at_least=0,
        ),
        "whiten_rewards": Field(
            False, "unit variance of a token's, mean kept, as AlpacaFarm does; not if normalized"
        ),
        "whiten_advantages": Field(True, "mean 0 and variance 1 in a rollout"),
        "missing_eos": Field(
            "none",
            "what becomes of rewards where no EOS came: kept | replaced by the penalty | added to",
            choices=MISSING_EOS,
        ),
        "missing_eos_penalty": Field(-1.0, "a reward, usually negative"),
    },
    "Adapters (LoRA)": {
        "lora.share_base": Field(
            True, "an adapter as reward model is on the policy's base; False: it is held whole"
        )
    },
    "Optimizer (AdamW)": {
        "optimizer.critic_learning_rate": Field(0.0, "of the critic; 0: learning_rate", at_least=0),
        "optimizer.warmup_steps": Field(5, "steps of warm-up", at_least=0),
    },
    "Evaluation and checkpoints": {
        "best_metric": Field(
            "last",
            "which policy is exported: the last one, or that with the judge's best score, or "
            "without a judge the best reward, missing_eos counted",
            choices=("last", "score"),
        ),
        "logged_samples": Field(4, "responses in samples.jsonl at an evaluation", at_least=0),
    },
    "Devices and precision": {
        "generation_mesh": Field(
            "", 'of the same devices while they decode, such as 1,1,-1; "": the mesh'
        ),
        "inference_dtype": Field(
            "float32",
            "bfloat16: reference and reward model are stored in the dtypes they are computed with",
            choices=common.DTYPES,
        ),
    },
}
FIELDS = collect_fields(
    RUN,
    GROUPS,
    common.READING,
    LORA,
    OPTIMIZER,
    CHECKPOINTS,
    DEVICES,
    first="run_dir policy reward_model reward_function judge prompts validation "
    "data.max_new_tokens algorithm steps rollout_batch_size minibatch_size micro_batch_size "
    "kl.coef optimizer.learning_rate eval_every seed",
    defaults={
        "run_dir": "runs/ppo",
        "optimizer.learning_rate": 1e-5,
        "optimizer.schedule": "linear",
        "eval_every": 10,
        "save_every": 20,
    },
)


VARIANTS = {
    "tiny": {
        "data.max_prompt_length": 64,
        "data.max_new_tokens": 22,
        "rollout_batch_size": 64,
        "minibatch_size": 32,
        "kl.coef": 0.1,
        "gae_lambda": 0.95,
        "missing_eos": "subtract",
        "optimizer.learning_rate": 5e-4,
        "optimizer.critic_learning_rate": 1e-3,
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 0,
        "validation_prompts": 256,
        "save_every": 40,
    },
    "cad": {
        "data.max_prompt_length": 64,
        "data.max_new_tokens": 64,
        "rollout_batch_size": 32,
        "minibatch_size": 16,
        "steps": 60,
        "kl.coef": 0.3,  # 0.1 leaves the language: 29 nats a response after 60 steps
        "gae_lambda": 0.95,
        "optimizer.learning_rate": 2e-4,
        "optimizer.critic_learning_rate": 1e-3,
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 0,
    },
    "smollm2": {
        "data.max_prompt_length": 96,
        "data.max_new_tokens": 64,
        "rollout_batch_size": 16,
        "minibatch_size": 8,
        "micro_batch_size": 8,
        "ppo_epochs": 1,
        "steps": 40,
        "kl.coef": 0.05,
        "gae_lambda": 0.95,
        "optimizer.critic_learning_rate": 3e-5,
        "validation_prompts": 32,
    },
    "llama_7b": {
        "inference_dtype": "bfloat16",
        "micro_batch_size": 32,
        "kl.estimator": "k1_clipped",
        # Not AlpacaFarm's whiten_rewards: of one unit a *token* the returns of 300 have a std of
        # 10.7, which a value that moves by value_clip_ratio=0.2 a rollout never reaches.
        "steps": 390,  # 10 epochs over 20k prompts
    },
    "llama_7b_lora": {
        "rollout_batch_size": 128,
        "minibatch_size": 64,
        "micro_batch_size": 16,
        "generation_mesh": "1,1,-1",  # each device decodes with its part of the merged weights
        "optimizer.learning_rate": 1e-4,
        "steps": 1560,  # 10 epochs over 20k prompts
    },
    "llama3_2_1b": {"micro_batch_size": 4},
}


def get_config(argument: str = "tiny,token"):
    model, _, level = argument.partition(",")
    level = level or "token"
    check_argument(f"ppo.py:{argument}", model, VARIANTS, "model")
    check_argument(f"ppo.py:{argument}", level, LEVELS, "level")
    config = make_model_config(FIELDS, model, VARIANTS, size="size")
    config.level = level
    if (model, level) == ("tiny", "sequence"):
        config.kl.coef = 0.3
    config.run_dir = f"runs/ppo_{model}_{level}"
    return config
