"""Per-token rewards of given responses: what ``launch.score`` needs."""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.reward_model = "runs/rm_tiny_token_edit"  # run_dir of launch.train_rm, or its export
    config.input = "runs/rm_tiny_token_edit/data/test.jsonl"  # edits, preferences, instructions
    config.output = ""  # FILE.jsonl | FILE.html; "" prints to the terminal
    config.limit = 0  # rows; 0 takes all (the terminal shows 5)
    config.calibrated = True  # about one unit a response; False writes the raw rewards
    config.batch_size = 16  # responses at a time
    config.max_length = 0  # 0 takes the training run's; longer responses are cut
    config.mesh = "1,-1,1"
    config.dtype = "float32"
    config.lock()
    return config
