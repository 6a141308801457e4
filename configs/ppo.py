"""PPO, RLOO, GRPO, distillation: ``--config=configs/ppo.py:MODEL[,LEVEL]``.

MODEL is one of configs/models.py. LEVEL is token (default) or sequence: one reward per
token or per response.
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
        "level": Field("token", "one reward per token or per sequence", choices=LEVELS),
        "reward_function": Field("", "MODULE:FUNCTION instead of a reward model"),
        "judge": Field("", "MODULE:FUNCTION that scores validation responses"),
        "critic": Field(
            "separate",
            "of ppo: its own backbone, copied from the reward model | a head on the policy",
            choices=("separate", "shared"),
        ),
        "reward_normalization": Field(
            "samples",
            "statistics that scale rewards to about one unit per response: of samples of the "
            "initial policy | stored with the reward model | none: raw rewards",
            choices=("samples", "reward_model", "none"),
        ),
        "size": Field("tiny", "architecture in launch.plan without paths", choices=tuple(SIZES)),
    },
    "Data": {
        "prompts": Field("", "FILE of prompts, as train of SFT; responses are ignored"),
        "validation": Field("", 'the same; "": split validation_share off prompts'),
        "validation_share": Field(0.05, "share of prompts for validation", at_least=0, at_most=1),
        "validation_prompts": Field(64, "prompts per evaluation, at most", at_least=1),
        "ptx_edits": Field("", "FILE of edits or demonstrations to imitate, as train of SFT"),
        "data.template": Field(
            "",
            'prompt template; "": the reward model\'s, else as in launch.generate',
            choices=("", *TEMPLATES),
        ),
        "data.max_prompt_length": Field(192, "tokens of a prompt, at most", at_least=1),
        "data.max_new_tokens": Field(300, "tokens of a response, at most", at_least=1),
        "data.overlong": Field("drop", "truncate or drop longer prompts", choices=common.OVERLONG),
    },
    "Rollouts and updates": {
        "steps": Field(80, "number of rollouts, each with its updates", at_least=1),
        "rollout_batch_size": Field(512, "responses per rollout", at_least=1),
        "samples_per_prompt": Field(0, "responses per prompt; 0: 4 (rloo, grpo) or 1", at_least=0),
        "minibatch_size": Field(256, "responses per update", at_least=1),
        "micro_batch_size": Field(
            0, "full-width rows per backward pass, more if shorter; 0: minibatch_size", at_least=0
        ),
        "ppo_epochs": Field(2, "passes over a rollout", at_least=1),
        "sampling.temperature": Field(1.0, "sampling temperature", at_least=1e-6),
        "sampling.int8_cache": common.INT8_CACHE,
    },
    "Algorithm": {
        "algorithm": Field(
            "ppo",
            "advantages from a critic | from other samples' returns | from rewards normalized over "
            "a prompt's samples | distillation of reference × exp(reward / kl.coef)",
            choices=ALGORITHMS,
        ),
        # For rewards of about one unit per response: 0.05 to 0.3 were best in every sweep; with
        # 0.03 outputs degenerated. AlpacaFarm's 0.0067 is for rewards of another scale.
        "kl.coef": Field(0.1, "weight of the KL penalty, in rewards per nat", at_least=0),
        "kl.estimator": Field("k1", "estimator; k1_clipped: AlpacaFarm's", choices=KL_ESTIMATORS),
        "kl.in_reward": Field(True, "False: rewards without a KL term, as in the paper"),
        "kl.target": Field(0.0, "adapt kl.coef to this KL in nats per response; 0: no", at_least=0),
        "kl.horizon": Field(10000.0, "responses over which kl.coef adapts", at_least=1e-6),
        "kl.limit": Field(0.0, "stop at this KL in nats per response; 0: no limit", at_least=0),
        "gamma": Field(1.0, "discount per token", at_least=0),
        "gae_lambda": Field(1.0, "lambda of GAE", at_least=0),
        "clip_ratio": Field(0.2, "clip the policy ratio to 1 ± this", at_least=1e-6),
        "value_clip_ratio": Field(0.2, "clip values to ± this around the rollout's", at_least=1e-6),
        "value_coef": Field(
            0.1, "critic=shared: weight of the value loss in the backbone's gradient", at_least=0
        ),
        "ptx_weight": Field(
            0.0, "PPO-ptx: weight of cross-entropy, minibatch_size ptx_edits an update", at_least=0
        ),
        "whiten_rewards": Field(
            False,
            "scale token rewards to unit variance, keep their mean, as AlpacaFarm does; use only "
            "with reward_normalization=none",
        ),
        "whiten_advantages": Field(True, "mean 0 and variance 1 over a rollout"),
        "missing_eos": Field(
            "none",
            "rewards of responses without EOS: unchanged | replaced by the penalty | penalty added",
            choices=MISSING_EOS,
        ),
        "missing_eos_penalty": Field(-1.0, "reward, usually negative"),
    },
    "Adapters (LoRA)": {
        "lora.share_base": Field(
            True, "a reward model that is an adapter shares the policy's base; False: its own copy"
        )
    },
    "Optimizer (AdamW)": {
        "optimizer.critic_learning_rate": Field(
            0.0, "learning rate of the critic; 0: learning_rate", at_least=0
        ),
        "optimizer.warmup_steps": Field(5, "warm-up in steps", at_least=0),
    },
    "Evaluation and checkpoints": {
        "best_metric": Field(
            "last",
            "export the last policy, or the policy with the best score of the judge (without a "
            "judge: the best reward, missing_eos included)",
            choices=("last", "score"),
        ),
        "logged_samples": Field(4, "responses per evaluation in samples.jsonl", at_least=0),
    },
    "Devices and precision": {
        "generation_mesh": Field("", 'mesh of the devices in decoding, such as 1,1,-1; "": mesh'),
        "inference_dtype": Field(
            "float32",
            "bfloat16: store reference and reward model in the dtypes of their computation",
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
        "kl.coef": 0.3,  # at 0.1 outputs degenerate: 29 nats per response after 60 steps
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
        # Not AlpacaFarm's whiten_rewards: with one unit per *token*, the returns of 300 tokens have
        # std 10.7, which values that move by value_clip_ratio=0.2 per rollout never reach.
        "steps": 390,  # 10 epochs over 20k prompts
    },
    "llama_7b_lora": {
        "rollout_batch_size": 128,
        "minibatch_size": 64,
        "micro_batch_size": 16,
        "generation_mesh": "1,1,-1",  # each device decodes with its shard of the merged weights
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
