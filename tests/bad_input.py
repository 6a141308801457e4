"""What a user may get wrong in the fields of a command, and what is then said."""

# For launch.train_rm: fields ("__" for the dots) -> a part of the sentence. DATA is a folder with
# files of every kind.
TRAIN = {
    # data
    "missing file": ({"train": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
    "missing validation": ({"validation": "no.jsonl"}, "no.jsonl: there is no such file"),
    "malformed line": ({"train": "DATA/malformed.jsonl"}, "malformed.jsonl:3: malformed JSON"),
    "empty file": ({"train": "DATA/empty.jsonl"}, "empty.jsonl: holds no rows"),
    "instructions": ({"train": "DATA/instructions.jsonl"}, "train: holds instructions"),
    "instructions to validate on": (
        {"validation": "DATA/instructions.jsonl"},
        "validation: holds instructions",
    ),
    "fewer pairs than a batch": (
        {"batch_size": 64},
        "batch_size: 64 is more than the 48 pairs there are",
    ),
    "no train": ({"train": ""}, "train is empty; give --config.train=FILE"),
    "nothing to validate on": (
        {"validation": "", "validation_share": 0.0},
        "none is left for validation",
    ),
    "no room for a response": (
        {"data__max_length": 64},
        "max_prompt_length: 64 must be above 0 and below max_length 64",
    ),
    "too long for the model": (
        {"data__max_length": 1024},
        "data.max_length=1024 is more than the model's 512 positions",
    ),
    "template": ({"data__template": "chatty"}, "template: 'chatty' is not one of alpaca, chat"),
    "no chat template": ({"data__template": "chat"}, "the tokenizer has no chat template"),
    # flags
    "typo": ({"step": 3}, "--config.step: there is no such field; did you mean steps?"),
    "nested typo": (
        {"optimizer__learning_rat": 1},
        "--config.optimizer.learning_rat: there is no such field; "
        "did you mean optimizer.learning_rate?",
    ),
    "without its group": (
        {"learning_rate": 1},
        "--config.learning_rate: there is no such field; did you mean optimizer.learning_rate?",
    ),
    "a group": (
        {"model": "tiny"},
        "--config.model: there is no such field; did you mean model.",
    ),
    "like nothing": (
        {"xyz": 1},
        "--config.xyz: there is no such field; there are batch_size, ",
    ),
    "no number": ({"steps": "many"}, "--config.steps=many: invalid literal for int()"),
    "half a number": ({"seed": 1.5}, "--config.seed=1.5: invalid literal for int()"),
    "no real number": (
        {"optimizer__learning_rate": "fast"},
        "--config.optimizer.learning_rate=fast: could not convert string to float",
    ),
    "neither true nor false": ({"model__remat": "maybe"}, "--config.model.remat=maybe: "),
    # values
    "loss": (
        {"loss": "tokens"},
        "loss='tokens' is not one of token_edit, token_full, sequence",
    ),
    "select": ({"select": "f1"}, "select='f1' is not one of loss, accuracy"),
    "dtype": ({"model__dtype": "float99"}, "model.dtype='float99' is not one of float32, bf"),
    "head": (
        {"model__head": "before"},
        "model.head='before' is not one of after, state_action",
    ),
    "attention": ({"model__attention": "fast"}, "model.attention='fast' is not one of auto, "),
    "size": ({"model__size": "huge"}, "random weights are for model.size=tiny or small only"),
    "schedule": ({"optimizer__schedule": "step"}, "schedule='step' is not one of constant, "),
    "no batch": ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    "negative": ({"micro_batch_size": -8}, "micro_batch_size=-8 must be at least 0"),
    "seed": ({"seed": -1}, "seed=-1 must be at least 0"),
    "no bucket": ({"data__smallest_bucket": 0}, "data.smallest_bucket=0 must be at least 1"),
    "not a number": (
        {"optimizer__learning_rate": "nan"},
        "learning_rate=nan must be at least 0",
    ),
    "freeze": ({"optimizer__freeze": "("}, "optimizer.freeze='(': is no regular expression"),
    "freeze nothing": ({"optimizer__freeze": "embedd$"}, "'embedd$' finds no parameter"),
    "freeze everything": ({"optimizer__freeze": "."}, "freeze='.' finds every parameter"),
    "no run_dir": ({"run_dir": ""}, "run_dir is empty; give --config.run_dir=FOLDER"),
    "tiny vocabulary": ({"model__vocab_size": 9}, "vocab_size: 9 is too small"),
    # meshes, with 8 devices
    "mesh": ({"mesh": "3,1,1"}, "mesh='3,1,1' makes 3 devices and there are 8"),
    "mesh of two sizes": ({"mesh": "8,1"}, "mesh='8,1': give data,fsdp,tensor as three sizes"),
    "mesh of words": ({"mesh": "all"}, "mesh='all': give data,fsdp,tensor as three sizes"),
    "batch over mesh": (
        {"batch_size": 12},
        "micro_batch_size=12 does not divide over data x fsdp = 8 devices",
    ),
    "micro-batches": (
        {"micro_batch_size": 16, "batch_size": 24},
        "batch_size=24 is not a multiple of micro_batch_size=16",
    ),
    # models
    "model": ({"model__path": "nowhere/at/all"}, "nowhere/at/all: no such model; give a "),
    "hub": ({"model__path": "no/model"}, "no/model: neither a local folder nor to be had from"),
    "file": ({"model__path": "DATA/train.jsonl"}, "train.jsonl: no such model; give a Hugging"),
    "folder": ({"model__path": "DATA"}, "config.json"),
}

# Whole flags instead of fields.
FLAGS = [
    (["--config=configs/rm.py:tinny"], "model 'tinny' is not one of tiny, cad, smollm2"),
    (["--config=configs/rm.py:tiny,edit"], "loss 'edit' is not one of token_edit, token_"),
    (["--config=configs/none.py"], "--config=configs/none.py: there is no such file"),
    (["--config"], "there is no such file"),
    (["--config=configs/base.py"], "configs/base.py: is no usable config"),
    (["--confg=configs/rm.py"], "Unknown command line flag 'confg'. Did you mean: config"),
    (["steps=3"], "'steps=3' is not a flag; write --config.FIELD=VALUE"),
    (["--config.steps"], "Missing value for flag --config.steps"),
    (
        ["--config=configs/rm.py:tiny,sequence", "--config.model.head=state_action"],
        "model.head=state_action needs a token loss",
    ),
    (
        ["--config=configs/rm.py:llama_7b"],
        "model.path is empty, and random weights are for",
    ),
]

# For the two commands that use a reward model; INPUT is the field "test" of the one and "input" of
# the other, LM a language model, OUT an empty folder, EXT the suffix of the output.
USE = {
    "no folder": ({"reward_model": "nowhere"}, "nowhere: is not a reward model of launch."),
    "not ours": ({"reward_model": "LM"}, "lm: is not a reward model of launch.train_rm"),
    "not finished": ({"reward_model": "DATA"}, "is not a reward model of launch.train_rm"),
    "missing input": ({"INPUT": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
    "malformed input": ({"INPUT": "DATA/malformed.jsonl"}, "malformed.jsonl:3: malformed JSON"),
    "typo": (
        {"batchsize": 3},
        "--config.batchsize: there is no such field; did you mean batch_",
    ),
    "batch": ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    "dtype": ({"dtype": "float99"}, "dtype='float99' is not one of float32, bfloat16"),
    "mesh": ({"mesh": "5,1,1"}, "mesh='5,1,1' makes 5 devices and there are 8"),
    "length": ({"max_length": 5}, "max_length"),
    "missing folder": ({"output": "OUT/none/x.EXT"}, "none does not exist; make it"),
    "below a file": ({"output": "DATA/train.jsonl/x.EXT"}, "does not exist; make it"),
    "a folder": ({"output": "OUT/folder.EXT"}, "is a folder; give the name of a file"),
    "wrong suffix": ({"output": "OUT/x.txt"}, "output="),
}
