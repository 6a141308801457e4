"""PPO with token-level or sequence-level rewards: ``--config=configs/ppo.py:MODEL[,LEVEL]``.

MODEL is one of

  tiny      on the embedded world, after launch.sft and launch.train_rm at their defaults
  cad       the small LLaMA of sft.py:cad and rm.py:cad (give policy, reward_model and prompts)
  smollm2   SmolLM2-135M (give policy, reward_model and prompts)
  llama_7b  AlpacaFarm's setting for LLaMA-7B on 8 x 80 GB (give policy, reward_model, prompts)

and LEVEL is token (default) or sequence: what the reward model pays for.
"""

from configs import base

LEVELS = ("token", "sequence")


def get_config(argument: str = "tiny,token"):
    model, _, level = argument.partition(",")
    level = level or "token"
    base.check(f"ppo.py:{argument}", model, VARIANTS, "model")
    base.check(f"ppo.py:{argument}", level, LEVELS, "level")
    config = base.ppo()
    config.level = level
    config.run_dir = f"runs/ppo_{model}_{level}"
    VARIANTS[model](config)
    config.lock()
    return config


def tiny(config):
    config.data.max_prompt_length = 64
    config.data.max_new_tokens = 22
    config.rollout_batch_size = 64
    config.minibatch_size = 32
    config.steps = 80
    config.kl.coef = 0.3 if config.level == "sequence" else 0.1
    config.gae_lambda = 0.95
    config.missing_eos = "subtract"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.critic_learning_rate = 1e-3
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0
    config.validation_prompts = 256
    config.save_every = 40


def cad(config):
    config.size = "small"
    config.data.max_prompt_length = 64
    config.data.max_new_tokens = 64
    config.rollout_batch_size = 32
    config.minibatch_size = 16
    config.steps = 60
    config.kl.coef = 0.3  # 0.1 leaves the language: 29 nats a response after 60 steps
    config.gae_lambda = 0.95
    config.optimizer.learning_rate = 2e-4
    config.optimizer.critic_learning_rate = 1e-3
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0


def smollm2(config):
    config.size = "smollm2_135m"
    config.model.remat = True
    config.data.max_prompt_length = 96
    config.data.max_new_tokens = 64
    config.rollout_batch_size = 16
    config.minibatch_size = 8
    config.micro_batch_size = 8
    config.ppo_epochs = 1
    config.steps = 40
    config.kl.coef = 0.05
    config.gae_lambda = 0.95
    config.optimizer.learning_rate = 1e-5
    config.optimizer.critic_learning_rate = 3e-5
    config.validation_prompts = 32


def llama_7b(config):
    config.size = "llama_7b"
    config.model.dtype = "bfloat16"
    config.model.remat = True
    config.sampling.unroll = False
    config.inference_dtype = "bfloat16"
    config.micro_batch_size = 32
    config.kl.estimator = "k1_clipped"
    config.whiten_rewards = True
    config.steps = 390  # 10 epochs over 20k prompts


VARIANTS = {"tiny": tiny, "cad": cad, "smollm2": smollm2, "llama_7b": llama_7b}
