"""The commands: python -m launch.NAME. Each is thin; what they do is in fgrlhf_jax."""

import os

# transformers is here for tokenizers only; its advice to install torch would confuse.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
