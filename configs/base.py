"""The fields of every kind of run and their defaults; a config changes what its variants need.

``0`` and ``""`` mean "not set" for the fields that say so. A misspelt override is refused.
"""

import dataclasses
from collections.abc import Collection

from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.tiny_world.people import Rates


def check(given: str, value: str, known: Collection[str], part: str = "") -> None:
    """Raises InputError for the argument of a config, or a part of it, that is no choice."""
    if value not in known:
        named = f"{part} {value!r} " if part else ""
        raise InputError(f"{given}: {named}is not one of {', '.join(known)}")


def _common(config: ConfigDict) -> None:
    """Where a run is, what it runs on, how the model is computed."""
    config.run_dir = ""
    config.seed = 0
    config.mesh = "1,-1,1"  # data,fsdp,tensor; -1 takes the rest of the devices
    config.distributed = False  # more than one process: one a host, all with this command
    config.coordinator = ""  # HOST:PORT; "" and the next two: found out on TPU pods, Slurm, …
    config.num_processes = 0
    config.process_id = -1
    config.save_every = 100
    config.max_to_keep = 1  # newest checkpoints kept, besides the best one
    config.tensorboard = False
    config.model = ConfigDict()
    config.model.dtype = "float32"  # of the computation; parameters and optimizer are float32
    config.model.remat = False
    config.model.scan_layers = True
    config.model.attention = "auto"  # auto | xla | cudnn


def _optimizer(config: ConfigDict) -> None:
    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 3e-6
    config.optimizer.schedule = "cosine"  # constant | linear | cosine
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.freeze = ""  # regular expression over parameter paths


def _supervised(config: ConfigDict) -> None:
    """What a reward model and supervised fine-tuning share."""
    # FILE.jsonl|.json|.parquet or a datasets id org/name[:config[:split]]; several by commas.
    config.train = ""  # "" makes the embedded data, for tiny
    config.validation = ""  # "" splits validation_share off train, by instruction
    config.validation_share = 0.05

    config.model.path = ""  # FOLDER | HUB_ID | FILE.gguf; "" starts from random weights
    config.model.size = "tiny"  # for random weights: a key of llama.SIZES
    config.model.tokenizer = ""  # for random weights: FOLDER | HUB_ID; "" trains one on `train`
    config.model.vocab_size = 512  # of the tokenizer that is trained

    config.data = ConfigDict()
    config.data.template = "alpaca"  # alpaca | chat | plain
    config.data.max_length = 512  # tokens of prompt and response
    config.data.max_prompt_length = 384
    config.data.overlong = "truncate"  # truncate | drop
    config.data.append_eos = True
    config.data.smallest_bucket = 64  # batches are padded to powers of two from here on

    config.batch_size = 16  # rows an update
    config.micro_batch_size = 0  # rows at a time; 0 takes the whole batch
    config.epochs = 1
    config.steps = 0  # 0 follows from epochs
    _optimizer(config)
    config.optimizer.warmup_share = 0.03

    config.eval_every = 50  # steps; 0 evaluates at the end only
    config.eval_batch_size = 0  # 0 takes micro_batch_size
    config.best_metric = (
        "loss"  # the best checkpoint has the lowest loss | the highest accuracy
    )
    config.patience = 0  # evaluations without improvement before an early stop; 0 never stops


def reward_model() -> ConfigDict:
    config = ConfigDict()
    _common(config)
    _supervised(config)
    config.run_dir = "runs/rm"
    config.test = ""

    config.loss = "token_edit"  # sequence | token_full | token_edit
    config.center_weight = 0.3  # 0 and 0 is the paper's Equation 4 to the letter
    config.consistency_weight = 0.0
    config.model.head = "after"  # after | state_action (token losses only)
    # normal, N(0, 1/sqrt(D + 1)), is AlpacaFarm's; zero spends no updates on unlearning that noise.
    config.model.head_init = "normal"
    config.data.alignment = "levenshtein"  # levenshtein | positional
    config.normalization_pairs = 512  # at most, of the validation set
    return config


def sft() -> ConfigDict:
    config = ConfigDict()
    _common(config)
    _supervised(config)
    config.run_dir = "runs/sft"
    config.data.max_prompt_length = 256
    config.batch_size = 128
    config.epochs = 3
    config.optimizer.learning_rate = 2e-5
    return config


def ppo() -> ConfigDict:
    config = ConfigDict()
    _common(config)
    config.run_dir = "runs/ppo"
    config.policy = ""  # FOLDER | HUB_ID | FILE.gguf of the policy and its reference
    config.reward_model = ""  # run_dir of launch.train_rm
    config.size = "tiny"  # what launch.plan takes the models to be where no path is given
    config.level = "token"  # token | sequence: what the reward model must be
    config.reward_function = ""  # module:function, instead of a reward model
    config.judge = ""  # module:function that scores the validation responses
    config.prompts = ""  # FILE with prompts, as for launch.train_rm; responses are not read
    config.validation = ""  # "" splits validation_share off prompts, by instruction
    config.validation_share = 0.05
    config.validation_prompts = 64  # at most; watched at every evaluation
    config.inference_dtype = "float32"  # of the reference's and the reward model's parameters
    config.critic = (
        "separate"  # a copy of the reward model's backbone | shared: a head on the policy
    )
    # What makes rewards about one unit a response: samples, of the policy before PPO |
    # reward_model, as stored with it | none, raw rewards.
    config.reward_normalization = "samples"

    config.data = ConfigDict()
    config.data.template = ""  # alpaca | chat | plain; "" is the reward model's or policy's
    config.data.max_prompt_length = 192
    config.data.max_new_tokens = 300
    config.data.overlong = "drop"  # drop | truncate

    config.sampling = ConfigDict()
    config.sampling.temperature = 1.0
    config.sampling.unroll = True  # fastest; False needs no second copy of the weights

    config.steps = 80
    config.rollout_batch_size = 512  # prompts a step
    config.minibatch_size = 256  # of them an update
    config.micro_batch_size = 0  # of them at a time; 0 takes the whole batch
    config.ppo_epochs = 2  # over a rollout

    config.kl = ConfigDict()
    config.kl.coef = 0.0067
    config.kl.estimator = "k1"  # k1 | k3 | k1_clipped (AlpacaFarm's)
    config.kl.in_reward = True  # False is the paper's letter: token rewards without a KL term
    config.kl.target = 0.0  # nats a response, adaptive coefficient; 0 keeps it fixed
    config.kl.horizon = 10000.0  # responses
    config.kl.limit = 0.0  # nats a response at which a run stops, saved; 0 never stops
    config.gamma = 1.0
    config.gae_lambda = 1.0
    config.clip_ratio = 0.2
    config.value_clip_ratio = 0.2
    config.value_coef = 0.1
    config.whiten_rewards = False  # without shifting their mean, as AlpacaFarm does
    config.whiten_advantages = True
    config.missing_eos = "none"  # none | replace | subtract, for responses cut at the limit
    config.missing_eos_penalty = -1.0

    _optimizer(config)
    config.optimizer.learning_rate = 1e-5
    config.optimizer.critic_learning_rate = 0.0  # 0 takes learning_rate
    config.optimizer.schedule = "linear"
    config.optimizer.eps = 1e-5
    config.optimizer.warmup_steps = 5  # PPO steps, of several updates each

    config.eval_every = 10
    config.best_metric = "last"  # export the last policy | score: that of the best evaluation
    config.logged_samples = 4  # responses kept with their token rewards at every evaluation
    config.save_every = 20
    return config


def pipeline() -> ConfigDict:
    config = ConfigDict()
    config.run_dir = "runs/pipeline"
    config.title = ""
    config.seed = 0
    config.seeds = 1  # each with its own feedback, reward models and policies; one SFT for all
    config.workers = (
        1  # stages at a time; more than 1 only where they do not share accelerators
    )
    # JAX_PLATFORMS of the stages, unless it is set already: cpu for tiny models, whose workers
    # would else meet on one accelerator; "" is what JAX finds.
    config.platforms = ""
    config.task = ""  # set by the pipeline itself, for its own stages

    config.embedded = False  # the embedded world, which needs no files

    config.files = ConfigDict()
    config.files.sft = ""  # instructions; "" imitates both sides of the edits
    config.files.edits = ""
    config.files.edits_validation = ""  # "" splits a tenth off the edits
    config.files.preferences = ""
    config.files.prompts = ""  # for PPO; "" takes those of the edits
    config.files.test = ""  # prompts; "" takes half of the held-out edits'

    config.world = ConfigDict()  # distinct prompts of each set
    config.world.sft = 16000
    config.world.feedback = 6000
    config.world.ppo = 6000
    config.world.validation = 500
    config.world.test = 1500
    config.world.rates = ConfigDict(dataclasses.asdict(Rates()))

    config.judge = ""  # module:function that scores responses
    config.judge_name = ""
    config.template = "alpaca"  # of every command, as are the next two
    config.max_prompt_length = 192
    config.max_new_tokens = 300
    config.test_prompts = 805  # at most
    config.answer_batch_size = 128
    config.table_batch_size = 64
    config.heatmaps = 3

    # The config of each command, and flags that differ from it: "steps=20,kl.coef=0.1".
    for stage in ("sft", "rm", "imitate", "ppo"):
        config[stage] = ConfigDict()
        config[stage].config = ""
        config[stage].defaults = ""  # of the config
        config[stage].flags = ""  # yours, which are added to the defaults and win
    config.sft.devices = 0  # CPU devices that share the batches of SFT; 0 is what JAX finds

    config.run_arms = "sft_edits,ppo_rlhf,fine_grained,fine_grained_token,oracle"
    config.arms = ConfigDict()  # the same for one arm; its flags win over those of ppo
    for arm in (
        "ppo_rlhf",
        "fine_grained",
        "fine_grained_token",
        "kl_outside",
        "state_action",
        "oracle",
        "edits_then_token",
    ):
        config.arms[arm] = ConfigDict({"defaults": "", "flags": ""})
    return config
