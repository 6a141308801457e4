"""The fields of every reward-model run and their defaults; ``rm.py`` changes what a variant needs.

``0`` and ``""`` mean "not set" for the fields that say so. A misspelt override is refused.
"""

from ml_collections import ConfigDict


def reward_model() -> ConfigDict:
    config = ConfigDict()
    config.run_dir = "runs/rm"
    config.seed = 0
    # FILE.jsonl|.json|.parquet or a datasets id org/name[:config[:split]]; several by commas.
    # Edits and preferences may be mixed. train="" generates the embedded tiny data.
    config.train = ""
    config.validation = ""  # "" splits validation_share off train, by instruction
    config.test = ""
    config.validation_share = 0.05

    config.loss = "token_edit"  # sequence | token_full | token_edit
    config.center_weight = 0.3  # 0 and 0 is the paper's Equation 4 to the letter
    config.consistency_weight = 0.0

    config.model = ConfigDict()
    config.model.path = ""  # FOLDER | HUB_ID | FILE.gguf; "" starts from random weights
    config.model.size = "tiny"  # for random weights: a key of llama.SIZES
    config.model.vocab_size = 512  # for random weights: of the tokenizer trained on `train`
    config.model.head = "after"  # after | state_action (token losses only)
    # normal, N(0, 1/sqrt(D + 1)), is AlpacaFarm's; zero spends no updates on unlearning that noise.
    config.model.head_init = "normal"
    config.model.dtype = "float32"  # of the computation; parameters and optimizer are float32
    config.model.remat = False
    config.model.scan_layers = True
    config.model.attention = "auto"  # auto | xla | cudnn

    config.data = ConfigDict()
    config.data.template = "alpaca"  # alpaca | chat | plain
    config.data.max_length = 512  # tokens of prompt and response
    config.data.max_prompt_length = 384
    config.data.overlong = "truncate"  # truncate | drop
    config.data.alignment = "levenshtein"  # levenshtein | positional
    config.data.append_eos = True
    config.data.smallest_bucket = 64  # batches are padded to powers of two from here on

    config.mesh = "1,-1,1"  # data,fsdp,tensor; -1 takes the rest of the devices
    config.distributed = False  # more than one process: one a host, all with this command
    config.coordinator = ""  # HOST:PORT; "" and the next two: found out on TPU pods, Slurm, …
    config.num_processes = 0
    config.process_id = -1
    config.batch_size = 16  # pairs an update
    config.micro_batch_size = 0  # pairs at a time; 0 takes the whole batch
    config.epochs = 1
    config.steps = 0  # 0 follows from epochs

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 3e-6
    config.optimizer.schedule = "cosine"  # constant | linear | cosine
    config.optimizer.warmup_share = 0.03
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.freeze = ""  # regular expression over parameter paths

    config.eval_every = 50  # steps; 0 evaluates at the end only
    config.eval_batch_size = 0  # 0 takes micro_batch_size
    config.select = "loss"  # the best checkpoint has the lowest loss | the highest accuracy
    config.patience = 0  # evaluations without improvement before an early stop; 0 never stops
    config.save_every = 100
    config.keep = 1  # newest checkpoints kept, besides the best one
    config.calibration_pairs = 512  # at most, of the validation set
    config.tensorboard = False
    return config
