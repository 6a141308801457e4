"""Peer: TRL's PPOTrainer; policy, reference, critic and reward model have the same size."""

import statistics
import time

import torch
import trl.experimental.ppo.ppo_trainer as ppo_trainer
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer
from worker import Clock, load_tokenizer, read_job, trainer_options, write_result

job = read_job()
tokenizer = load_tokenizer(job["model"])
size, rows = job["batch_size"], job["micro_batch_size"]
policy, reference = (
    AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32) for _ in range(2)
)
reward_model, critic = (
    AutoModelForSequenceClassification.from_pretrained(
        job["reward_model"], num_labels=1, dtype=torch.float32
    )
    for _ in range(2)
)
for model in (policy, reference, reward_model, critic):
    model.config.pad_token_id = tokenizer.pad_token_id
config = PPOConfig(
    per_device_train_batch_size=rows,
    gradient_accumulation_steps=size // rows,
    local_rollout_forward_batch_size=rows,
    num_mini_batches=1,
    num_ppo_epochs=1,
    total_episodes=size * (job["warmup"] + job["steps"]),
    response_length=job["response"],
    stop_token=None if job["end"] is None else "eos",
    learning_rate=1e-6,
    kl_coef=0.05,
    num_sample_generations=0,
    **trainer_options(),
)
lengths, sampling, batch_generation = [], [], ppo_trainer.batch_generation


def timed_generation(model, queries, *args):
    clock = time.perf_counter()
    result = batch_generation(model, queries, *args)
    sampling.append(time.perf_counter() - clock)
    lengths.append([])
    for response in result[0][:, queries.shape[1] :].tolist():
        ended = job["end"] in response
        lengths[-1].append(response.index(job["end"]) + 1 if ended else len(response))
    return result


ppo_trainer.batch_generation = timed_generation
clock = Clock()
PPOTrainer(
    args=config,
    processing_class=tokenizer,
    model=policy,
    ref_model=reference,
    reward_model=reward_model,
    value_model=critic,
    train_dataset=Dataset.from_dict({"input_ids": job["prompts"]}),
    callbacks=[clock],
).train()
rollouts = sampling[job["warmup"] :]
write_result(
    {
        "seconds": clock.seconds[job["warmup"] :],
        "count": sum(lengths[-1]) if job["end"] is None else size,
        "lengths": lengths[-1],
        "stages": {"rollout": statistics.median(rollouts)},
    }
)
