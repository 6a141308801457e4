"""The commands: ``fgrlhf NAME``, or ``python -m launch.NAME``; what they do is in fgrlhf_jax."""
