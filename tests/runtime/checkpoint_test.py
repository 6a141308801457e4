"""Checkpoints: what is restored is what was saved, bit for bit, or one sentence says why not."""

import contextlib
import math
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bad_input_cases import damage
from jax.sharding import PartitionSpec as P

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.checkpoint import Checkpoints

LOOP = {"best_step": 2, "best_value": math.inf, "stale": 1, "done": False}
SPECS = {"a": P("fsdp", "tensor"), "b": P("data"), "n": P(), "s": P(None, ("data", "fsdp"))}


def parts(seed: int = 0, shape: str = "2,2,2") -> dict:
    """Two parts of several leaves, each placed in its own way, with awkward floats among them."""
    rng = np.random.default_rng(seed)
    leaves = {
        "a": rng.standard_normal((8, 12)).astype(np.float32),
        "b": np.array([0.0, -0.0, 1e-45, np.inf, np.nan, -1e38, 3.0, seed], np.float32),
        "n": np.int32(seed),
        "s": rng.standard_normal((3, 8, 2)).astype(np.float32),
    }
    mesh = sharding.make_mesh(shape)
    where = {name: jax.NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    tree = jax.device_put(leaves, where)
    return {"params": {"x": tree, "y": {"a": tree["a"] + 1}}, "opt_state": [tree, tree["n"]]}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def steps(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextlib.contextmanager
def opened(folder: Path, **options):
    """Checkpoints whose saves are whole at the end."""
    with contextlib.closing(Checkpoints(folder, **options)) as checkpoints:
        yield checkpoints
        checkpoints.wait()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    with opened(folder, keep=1) as checkpoints:
        checkpoints.best = 1
        checkpoints.save(1, parts(1), LOOP)
        checkpoints.save(3, parts(3), LOOP)
    return folder


@pytest.fixture
def saved(original, tmp_path):
    """A folder with the checkpoints 1 and 3, the best and the newest."""
    return Path(shutil.copytree(original, tmp_path / "c"))


@pytest.mark.parametrize("shape", ["2,2,2", "1,4,2"])
def test_round_trip_of_sharded_parts(original, shape):
    """Also onto another mesh."""
    expected, shapes = parts(3), abstract(parts(3, shape))
    with opened(original) as checkpoints:
        restored = checkpoints.restore(checkpoints.latest, shapes)
        assert bits(restored) == bits(expected)
        assert jax.tree.structure(restored) == jax.tree.structure(expected)
        for leaf, like in zip(jax.tree.leaves(restored), jax.tree.leaves(shapes), strict=True):
            assert leaf.sharding == like.sharding
        assert checkpoints.loop(3) == LOOP
        params = checkpoints.restore(1, {"params": abstract(parts()["params"])})
    assert bits(params) == bits(parts(1)["params"])


def test_what_was_saved_may_be_donated_at_once(tmp_path):
    state = {"params": {"w": jnp.arange(200_000.0)}}
    before, shapes = bits(state), abstract(state)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: -x - 1, tree), donate_argnums=0)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state, LOOP)
        for _ in range(5):
            state = overwrite(state)
        jax.block_until_ready(state)
        checkpoints.wait()
        assert bits(checkpoints.restore(1, shapes)) == before


def test_the_loop_that_was_saved_may_change_at_once(tmp_path, monkeypatch):
    loop = LOOP | {"memory": {"kl_coef": 0.1}}
    with opened(tmp_path) as checkpoints:
        write = checkpoints.manager.save

        def write_later(*args, **options):  # in the background, on a slow disk
            loop["memory"]["kl_coef"] = 0.2
            return write(*args, **options)

        monkeypatch.setattr(checkpoints.manager, "save", write_later)
        checkpoints.save(1, {"params": {"w": jnp.ones(4)}}, loop)
        checkpoints.wait()
        assert checkpoints.loop(1) == LOOP | {"memory": {"kl_coef": 0.1}}


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    small = {"params": {"w": jnp.zeros(2)}}
    best, done = 0, []
    for group in ((1, 2, 3), (4,), (5, 6, 7, 8)):
        with opened(tmp_path, keep=2) as checkpoints:
            checkpoints.best = best
            assert checkpoints.latest == (done[-1] if done else None)
            for step in group:
                best = checkpoints.best = step if step in (2, 6) else best
                checkpoints.save(step, small, LOOP)
                checkpoints.wait()
                done.append(step)
                expected = {*done[-2:], *([best] if best else [])}
                assert steps(tmp_path) == {str(step) for step in expected}, (group, step)


def read(folder: Path):
    """The newest checkpoint as a run reads it at its start."""
    with opened(folder) as checkpoints:
        step = checkpoints.latest
        return checkpoints.loop(step), bits(checkpoints.restore(step, abstract(parts())))


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_damaged_file_is_noticed(saved, how):
    """Whichever file it is: one sentence with the folder, or it did not matter."""
    noticed, rng = set(), random.Random(0)
    for file in sorted(path for path in (saved / "3").rglob("*") if path.is_file()):
        whole = file.read_bytes()
        damage(file, how, rng, file)
        try:
            assert read(saved) == (LOOP, bits(parts(3))), file
        except InputError as error:
            message = str(error)
            assert message.startswith(f"{saved / '3'}: this checkpoint cannot be read ("), file
            assert "delete this folder to resume from step 1, or" in message
            assert "\n" not in message
            noticed.add(file.relative_to(saved / "3").parts[0])
        file.write_bytes(whole)
    assert noticed >= {"loop", "params", "opt_state"}
    assert read(saved) == (LOOP, bits(parts(3)))


def test_another_architecture(original):
    leaf = abstract(parts())["params"]["x"]["a"]

    def like(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=leaf.sharding)

    with opened(original) as checkpoints:
        for leaves, message in (
            ({"a": like((16, 12), jnp.float32)}, "x/a (saved float32[8, 12], now float32[16, 12])"),
            ({"z": leaf}, "x/z (saved missing, now float32[8, 12])"),
            (dict.fromkeys("abns"), "now missing), 1 more; continue with that model"),
        ):
            tree = abstract(parts())
            changed = tree["params"]["x"] | leaves
            tree["params"]["x"] = {k: v for k, v in changed.items() if v is not None}
            with pytest.raises(InputError, match="3: this checkpoint is of another") as error:
                checkpoints.restore(3, tree)
            assert message in str(error.value)


def test_a_partly_written_checkpoint_is_not_seen(saved):
    """What a kill leaves: a temporary folder of a save, half of a folder being deleted."""
    (saved / "7.orbax-checkpoint-tmp" / "params.orbax-checkpoint-tmp").mkdir(parents=True)
    (saved / "2").mkdir()
    with opened(saved, keep=1) as checkpoints:
        checkpoints.best = 1
        assert checkpoints.latest == 3
        assert bits(checkpoints.restore(3, abstract(parts()))) == bits(parts(3))
        checkpoints.save(4, parts(4), LOOP)
    assert steps(saved) == {"1", "4"}


def test_the_folder_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    message = r"file/c: saving a checkpoint failed \(Not a directory"
    with pytest.raises(InputError, match=message):
        Checkpoints(tmp_path / "file" / "c")
