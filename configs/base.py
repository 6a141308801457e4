"""The fields that SFT, reward models and PPO share."""

from configs.common import DTYPES, EXPORT_DTYPES, MESH, MODEL, OVERLONG, READING, SOURCE
from configs.fields import Field
from fgrlhf_jax.data.templates import TEMPLATES
from fgrlhf_jax.models.attention import CHOICES
from fgrlhf_jax.models.quantize import KINDS
from fgrlhf_jax.models.sizes import SIZES
from fgrlhf_jax.runtime.optim import SCHEDULES

RUN = {
    "Run": {
        "run_dir": Field("", "FOLDER of the run; the same command resumes it"),
        "seed": Field(0, "seed of weights, order and sampling", at_least=0),
    }
}
DEVICES = {
    "Devices and precision": {
        "mesh": MESH,
        "distributed": Field(False, "several processes, one a host; start each with this command"),
        "coordinator": Field("", 'HOST:PORT of process 0; "": detected on TPU pods and Slurm'),
        "num_processes": Field(0, "number of processes; 0: detected", at_least=0),
        "process_id": Field(-1, "number of this process; -1: detected", at_least=-1),
        "model.dtype": Field("float32", "dtype of computation; weights: float32", choices=DTYPES),
        "model.remat": Field(False, "recompute activations in the backward pass: less memory"),
        "model.scan_layers": Field(True, "compile one layer and scan it: compiles faster"),
        "model.attention": Field(
            "auto", "kernel; auto: the devices' flash kernel where supported", choices=CHOICES
        ),
        "model.float32_gradients": Field(
            False, "with bfloat16: sum gradients of matrices over devices in float32"
        ),
        "export.dtype": Field("float32", "dtype of the exported weights", choices=EXPORT_DTYPES),
        "export.merged": Field(False, "with lora.rank: export merged weights; False: an adapter"),
    }
}
OPTIMIZER = {
    "Optimizer (AdamW)": {
        "optimizer.learning_rate": Field(3e-6, "peak learning rate", at_least=0),
        "optimizer.schedule": Field("cosine", "decay after the warm-up", choices=SCHEDULES),
        "optimizer.b1": Field(0.9, "decay of the first moment", at_least=0, at_most=1),
        "optimizer.b2": Field(0.999, "decay of the second moment", at_least=0, at_most=1),
        "optimizer.eps": Field(1e-8, "added to the root of the second moment", at_least=0),
        "optimizer.weight_decay": Field(0.0, "decoupled weight decay", at_least=0),
        "optimizer.clip_norm": Field(1.0, "largest global norm of a gradient", at_least=0),
        "optimizer.freeze": Field("", "regular expression of parameter paths not to train"),
    }
}
LORA = {
    "Adapters (LoRA)": {
        "lora.rank": Field(
            0,
            "rank of adapters on a frozen base, which need about ten times the learning rate of "
            "full fine-tuning; 0: train all weights",
            at_least=0,
        ),
        "lora.alpha": Field(32.0, "adapter outputs are scaled by alpha / rank", at_least=1e-6),
        "lora.rslora": Field(False, "scale by alpha / sqrt(rank) instead"),
        "lora.base_dtype": Field(
            "float32", "dtype of frozen kernels; int8, nf4: quantized", choices=(*DTYPES, *KINDS)
        ),
        "lora.targets": Field(
            ".", "regular expression of the adapted layers, such as attention/q, mlp/down"
        ),
    }
}
CHECKPOINTS = {
    "Evaluation and checkpoints": {
        "eval_every": Field(50, "steps between evaluations; 0: at the end only", at_least=0),
        "save_every": Field(
            100, "steps between checkpoints; 0: at a new best and at the end only", at_least=0
        ),
        "max_seconds": Field(
            0.0,
            "seconds of updates (without compilation, evaluation, saving) after which training "
            "ends; 0: no limit",
            at_least=0,
        ),
        "max_to_keep": Field(1, "newest checkpoints to keep, besides the best one", at_least=1),
        "tensorboard": Field(False, "write metrics for TensorBoard too"),
        "profile": Field(0, "step to trace into run_dir/profile; 0: none", at_least=0),
    }
}

# Fields of reward models and supervised fine-tuning.
_SUPERVISED = {
    "Data": {
        "train": Field("", f'{SOURCE}; "": the embedded data, for tiny'),
        "validation": Field("", 'the same; "": split validation_share off train'),
        "validation_share": Field(0.05, "share of prompts for validation", at_least=0, at_most=1),
        "data.template": Field("alpaca", "prompt template", choices=TEMPLATES),
        "data.max_length": Field(512, "tokens of prompt and response, at most", at_least=1),
        "data.max_prompt_length": Field(384, "tokens of a prompt, at most", at_least=1),
        "data.overlong": Field("truncate", "truncate or drop longer rows", choices=OVERLONG),
        "data.append_eos": Field(True, "end every response with the EOS token"),
        "data.buckets": Field(6, "number of batch widths, chosen for least padding", at_least=1),
    },
    "Model": {
        "model.path": Field("", f'{MODEL}; "": random weights'),
        "model.size": Field("tiny", "architecture of random weights", choices=tuple(SIZES)),
        "model.tokenizer": Field("", 'for random weights: FOLDER | HUB_ID; "": train a tokenizer'),
        "model.vocab_size": Field(512, "vocabulary size of the trained tokenizer", at_least=259),
    },
    "Updates": {
        "batch_size": Field(16, "rows per update", at_least=1),
        "micro_batch_size": Field(0, "rows per forward/backward pass; 0: batch_size", at_least=0),
        "epochs": Field(1, "passes over the training data", at_least=0),
        "steps": Field(0, "updates; 0: as many as epochs needs", at_least=0),
    },
    "Optimizer (AdamW)": {
        "optimizer.warmup_share": Field(0.03, "warm-up as a share of steps", at_least=0, at_most=1)
    },
    "Evaluation and checkpoints": {
        "eval_batch_size": Field(0, "rows per evaluation batch; 0: micro_batch_size", at_least=0),
        "best_metric": Field(
            "loss",
            "validation metric that selects the best checkpoint: lowest loss or highest accuracy",
            choices=("loss", "accuracy"),
        ),
        "patience": Field(0, "evaluations without improvement before a stop; 0: never", at_least=0),
    },
}
SUPERVISED = (RUN, _SUPERVISED, READING, LORA, OPTIMIZER, CHECKPOINTS, DEVICES)
SUPERVISED_FIRST = (
    "run_dir train validation data.template data.max_length model.path batch_size "
    "micro_batch_size epochs steps optimizer.learning_rate eval_every seed"
)
