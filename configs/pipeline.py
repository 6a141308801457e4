"""The whole method on one command: ``--config=configs/pipeline.py:VARIANT``.

VARIANT is one of

  tiny      the embedded world, one seed, the paper's arms and the oracle; minutes on two cores
  study     the same with every arm and baseline, and 3 seeds
  cad       a small LLaMA from random weights on your file of edits (give --config.files.edits)
  llama_7b  the paper's experiment (give files.sft, files.edits, files.preferences, files.prompts)

``sft``, ``rm``, ``imitate`` and ``ppo`` each name the config of a command and the flags that
differ; ``arms.NAME`` has the flags of one arm.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "tiny"):
    base.check(f"pipeline.py:{argument}", argument, VARIANTS)
    config = base.pipeline()
    config.run_dir = f"runs/pipeline_{argument}"
    VARIANTS[argument](config)
    config.lock()
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
    config.sft.config = "configs/sft.py:tiny"
    # The world's prompts have at most 10 tokens, its responses 22.
    lengths = {"data__max_length": 32, "data__smallest_bucket": 24}
    config.sft.flags = ConfigDict(lengths | {"steps": 1500})
    rm = {
        "model__head_init": "zero",
        "steps": 600,
        "eval_every": 50,
        "patience": 3,
        "save_every": 0,
        "optimizer__learning_rate": 1e-3,
    }
    config.rm.config = "configs/rm.py:tiny"
    config.rm.flags = ConfigDict(lengths | rm)
    config.imitate.config = "configs/sft.py:tiny"
    imitate = {"steps": 400, "eval_every": 50, "optimizer__learning_rate": 1e-3}
    config.imitate.flags = ConfigDict(lengths | imitate)
    config.ppo.config = "configs/ppo.py:tiny"
    config.ppo.flags = ConfigDict({"eval_every": 5})
    config.arms.ppo_rlhf.kl__coef = 0.3
    config.arms.fine_grained.kl__coef = 0.3
    config.arms.fine_grained_token.kl__coef = 0.3
    config.arms.state_action.kl__coef = 0.1
    config.arms.oracle.kl__coef = (
        0.03  # gold is in units of its own: a third of a calibrated one
    )
    config.arms.edits_then_token.kl__coef = 0.3


def study(config):
    tiny(config)
    config.title = "Fine-grained supervision on the embedded world: all arms, three seeds"
    config.seeds = 3
    config.sft.flags.steps = 2400
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
    lengths = {"data__max_length": 160}
    config.sft.config = "configs/sft.py:cad"
    config.sft.flags = ConfigDict(lengths)
    config.rm.config = "configs/rm.py:cad"
    config.rm.flags = ConfigDict(lengths | {"steps": 200})
    config.imitate.config = "configs/sft.py:cad"
    imitate = {"epochs": 1, "optimizer__learning_rate": 5e-4}
    config.imitate.flags = ConfigDict(lengths | imitate)
    config.ppo.config = "configs/ppo.py:cad"
    config.ppo.flags = ConfigDict({"eval_every": 10})
    config.run_arms = "sft_edits,fine_grained,fine_grained_token"


def llama_7b(config):
    config.title = "Fine-grained supervision of LLaMA-7B"
    config.judge = ""
    config.judge_name = "judge"
    config.sft.config = "configs/sft.py:llama_7b"
    config.sft.flags = ConfigDict({"model__path": ""})  # to be given
    config.rm.config = "configs/rm.py:llama_7b"
    config.imitate.config = "configs/sft.py:llama_7b"
    config.ppo.config = "configs/ppo.py:llama_7b"
    config.run_arms = "ppo_rlhf,fine_grained,fine_grained_token"


VARIANTS = {"tiny": tiny, "study": study, "cad": cad, "llama_7b": llama_7b}
