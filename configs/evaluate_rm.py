"""Table 2 for any file of pairs: what ``launch.evaluate_rm`` needs."""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.reward_model = "runs/rm_tiny_token_edit"  # run_dir of launch.train_rm, or its export
    config.test = "runs/rm_tiny_token_edit/data/test.jsonl"  # edits, preferences or both
    config.output = ""  # FILE.json; "" only prints
    config.batch_size = 16  # pairs at a time
    config.max_length = 0  # 0 takes the training run's
    config.overlong = "truncate"  # truncate | drop
    config.mesh = "1,-1,1"
    config.dtype = "float32"
    config.lock()
    return config
