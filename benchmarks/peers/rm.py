"""Peer: TRL's RewardTrainer on pairs."""

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer
from worker import Clock, load_tokenizer, read_job, trainer_options, write_result

job = read_job()
tokenizer = load_tokenizer(job["model"])
model = AutoModelForSequenceClassification.from_pretrained(
    job["model"], num_labels=1, dtype=torch.float32
)
model.config.pad_token_id = tokenizer.pad_token_id
rows, size = job["rows"], job["batch_size"]
if job.get("epoch"):  # a warm-up update, then every pair once in random order
    order = torch.randperm(len(rows)).tolist()
    rows = rows[: job["warmup"] * size] + [rows[n] for n in order]
config = RewardConfig(
    per_device_train_batch_size=size,
    max_steps=len(rows) // size,
    max_length=None,
    learning_rate=1e-5,
    train_sampling_strategy="sequential",
    **trainer_options(),
)
clock = Clock()
pairs = {"chosen_ids": [i for i, _ in rows], "rejected_ids": [j for _, j in rows]}
RewardTrainer(
    model=model,
    args=config,
    processing_class=tokenizer,
    train_dataset=Dataset.from_dict(pairs),
    callbacks=[clock],
).train()
seconds = clock.seconds[job["warmup"] :]
if job.get("epoch"):
    write_result({"seconds": [sum(seconds)], "count": len(seconds) * size})
else:
    write_result({"seconds": seconds, "count": job["count"]})
