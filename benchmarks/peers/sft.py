"""Peer: plain PyTorch training of Hugging Face's model, cross-entropy of every token, AdamW."""

import time

import torch
from transformers import AutoModelForCausalLM
from worker import read_job, write_result

job = read_job()
model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).train()
optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=False)
tokens = torch.tensor(job["rows"])
seconds = []
for _ in range(job["warmup"] + job["steps"]):
    clock = time.perf_counter()
    logits = model(tokens).logits[:, :-1].float()
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1)
    )
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    seconds.append(time.perf_counter() - clock)
    print(f"step {seconds[-1]:.2f} s", flush=True)
write_result({"seconds": seconds[job["warmup"] :], "count": job["count"]})
