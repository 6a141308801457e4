"""The commands: python -m launch.NAME. Each is thin; what they do is in fgrlhf_jax."""
