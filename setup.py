"""Packaging. `launch` and `configs` are installed too: the commands work from any folder."""

from setuptools import find_packages, setup

COLLECT = ["anthropic>=2.13", "openai>=3.57", "httpx2>=2.12", "scikit-learn>=1.8"]
NOTEBOOK = ["ipykernel>=6.29", "matplotlib>=3.10", "nbclient>=0.10"]
ANNOTATE = ["markdown-it-py>=3.0", "starlette>=1.0", "uvicorn>=0.30"]

setup(
    name="fgrlhf_jax",
    version="0.1.0",
    description="Fine-grained RLHF from minimal edits, in JAX",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(
        include=["fgrlhf_jax", "fgrlhf_jax.*", "launch", "launch.*", "configs", "configs.*"]
    ),
    package_data={
        "fgrlhf_jax.feedback": ["annotation/assets/*", "edits/assets/*", "judges/assets/*"],
        "fgrlhf_jax.models": ["*.md", "*.jinja"],
        "fgrlhf_jax.report": ["assets/*"],
    },
    entry_points={"console_scripts": ["fgrlhf = launch.__main__:main"]},
    install_requires=[
        "absl-py>=2.3.1",
        "chex>=0.1.91",
        "datasets>=5.0",
        "filelock>=4.3.1",
        "flax>=0.12.7",
        "huggingface_hub>=1.31",
        "jax>=0.10",
        "jinja2>=3.1",
        "ml_collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12",
        "pyarrow>=24.0",
        "rapidfuzz>=3.14.1",
        "safetensors>=0.8",
        "scipy>=1.15",
        "sentencepiece>=0.2",
        "tokenizers>=0.23.1",
        "tqdm>=4.67",
        "transformers>=5.16",
    ],
    extras_require={
        "test": [
            *("pytest>=9.0", "pytest-xdist>=3.8", "ruff>=0.17", "vaderSentiment>=3.3.1"),
            *COLLECT,
            *ANNOTATE,
            *NOTEBOOK,
            "playwright>=1.60",
        ],
        "collect": COLLECT,
        "annotate": ANNOTATE,
        # Oracles of the tests, never imported by the package. Torch is pinned because
        # numbers are compared with it closely, and an open range takes GBs of CUDA libraries.
        "parity": ["torch==2.13.0", "gguf>=0.19", "accelerate>=1.15", "peft==0.21.2"],
        "gguf": ["gguf>=0.19"],
        "tensorboard": ["tensorboardX>=2.6"],
        # The notebook of examples/ and what runs it in the tests.
        "notebook": NOTEBOOK,
        # The site of docs/, with an API reference from the docstrings.
        "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"],
        "cuda12": ["jax[cuda12]>=0.10"],
        "cuda13": ["jax[cuda13]>=0.10"],
        "cuda": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
    },
)
