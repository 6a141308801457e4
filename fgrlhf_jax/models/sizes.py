"""The shapes of well-known models, by their names in configs."""

from fgrlhf_jax.models.llama import LlamaConfig, RopeScaling

SIZES: dict[str, LlamaConfig] = {
    "tiny": LlamaConfig(256, 64, 192, 2, 4, 2, 16, max_position=512),
    "small": LlamaConfig(4096, 128, 384, 2, 4, 4, 32, max_position=1024),
    "smollm2_135m": LlamaConfig(
        *(49152, 576, 1536, 30, 9, 3, 64),
        rope_theta=1e5,
        max_position=8192,
        tie_embeddings=True,
        initializer_range=1 / 24,
    ),
    "llama_7b": LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128, norm_eps=1e-6),
    "llama2_7b": LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128, max_position=4096),
    "llama3_2_1b": LlamaConfig(
        *(128256, 2048, 8192, 16, 32, 8, 64),
        rope_theta=5e5,
        rope_scaling=RopeScaling(factor=32.0),
        max_position=131072,
        tie_embeddings=True,
    ),
    "llama3_8b": LlamaConfig(
        128256, 4096, 14336, 32, 32, 8, 128, rope_theta=5e5, max_position=8192
    ),
}
