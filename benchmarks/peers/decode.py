"""Peer: Hugging Face's generate with its defaults, greedy, without stopping at EOS."""

import statistics
import time

import torch
from transformers import AutoModelForCausalLM
from worker import read_job, write_result

job = read_job()
model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
model.generation_config.eos_token_id = None
model.generation_config.pad_token_id = 0
prompts = torch.tensor(job["prompts"])


@torch.no_grad()
def generate(tokens: int) -> float:
    clock = time.perf_counter()
    output = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=tokens, do_sample=False
    )
    assert output.shape[1] == prompts.shape[1] + tokens
    return time.perf_counter() - clock


generate(1)
generate(job["response"])
prefill = statistics.median(generate(1) for _ in range(job["steps"]))
seconds = [generate(job["response"]) - prefill for _ in range(job["steps"])]
write_result({"seconds": seconds, "count": job["count"], "prefill_seconds": prefill})
