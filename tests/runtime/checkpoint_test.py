"""Checkpoints: what is restored is what was saved, bit for bit, or one sentence says why not."""

import itertools
import math
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.checkpoint import Checkpoints

LOOP = {"best_step": 2, "best_value": math.inf, "stale": 1, "done": False}
SPECS = {"a": P("fsdp", "tensor"), "b": P("data"), "n": P(), "s": P(None, ("data", "fsdp"))}


def mesh(shape: str = "2,2,2"):
    return sharding.make_mesh(shape)


def parts(seed: int = 0, shape: str = "2,2,2") -> dict:
    """Two parts of several leaves, each placed in its own way, with awkward floats among them."""
    rng = np.random.default_rng(seed)
    leaves = {
        "a": rng.standard_normal((8, 12)).astype(np.float32),
        "b": np.array([0.0, -0.0, 1e-45, np.inf, np.nan, -1e38, 3.0, seed], np.float32),
        "n": np.int32(seed),
        "s": rng.standard_normal((3, 8, 2)).astype(np.float32),
    }
    where = {name: jax.NamedSharding(mesh(shape), spec) for name, spec in SPECS.items()}
    tree = {name: jax.device_put(leaf, where[name]) for name, leaf in leaves.items()}
    return {"params": {"x": tree, "y": {"a": tree["a"] + 1}}, "opt_state": [tree, tree["n"]]}


def abstract(tree):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def steps(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints 1 and 3, the best and the newest."""
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(1, parts(1), LOOP, best=True)
    checkpoints.save(3, parts(3), LOOP)
    checkpoints.wait()
    checkpoints.close()
    return tmp_path / "c"


def test_round_trip_of_sharded_parts(saved):
    checkpoints = Checkpoints(saved)
    then = parts(3)
    now = checkpoints.restore(checkpoints.latest, abstract(then))
    assert bits(now) == bits(then)
    assert jax.tree.structure(now) == jax.tree.structure(then)
    same = jax.tree.map(
        lambda a, b: a.sharding == b.sharding and not a.sharding.is_fully_replicated,
        [now["params"]["x"][name] for name in "abs"],
        [then["params"]["x"][name] for name in "abs"],
    )
    assert all(same)
    assert checkpoints.loop(3) == LOOP
    assert bits(checkpoints.restore(1, {"params": abstract(parts()["params"])})) == bits(
        parts(1)["params"]
    )
    checkpoints.close()


def test_another_mesh_reads_the_same_bits(saved):
    there = abstract(parts(shape="1,4,2"))
    checkpoints = Checkpoints(saved)
    now = checkpoints.restore(3, there)
    checkpoints.close()
    assert bits(now) == bits(parts(3))
    assert now["params"]["x"]["a"].sharding == there["params"]["x"]["a"].sharding


def test_what_was_saved_may_be_donated_at_once(tmp_path):
    state = {"params": {"w": jnp.arange(200_000.0)}}
    then, shapes = bits(state), abstract(state)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: -x - 1, tree), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, LOOP)
    for _ in range(5):
        state = overwrite(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    assert bits(checkpoints.restore(1, shapes)) == then
    checkpoints.close()


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_and_the_best_are_kept(tmp_path, keep):
    """Also after a restart, which must know the best from the files alone."""
    small = {"params": {"w": jnp.zeros(2)}}
    best, done = None, []
    for start, group in enumerate([(1, 2, 3), (4,), (5, 6, 7, 8)]):
        checkpoints = Checkpoints(tmp_path, keep)
        assert checkpoints.latest == (done[-1] if done else None)
        for step in group:
            is_best = step in (2, 6)
            best = step if is_best else best
            checkpoints.save(step, small, LOOP, best=is_best)
            checkpoints.wait()
            done.append(step)
            wanted = {*done[-keep:], *([best] if best else [])}
            assert steps(tmp_path) == {str(step) for step in wanted}, (start, step)
        checkpoints.close()


def test_fingerprint_catches_every_flipped_bit():
    """One bit of any leaf, at any place, sharded or not."""
    rng = random.Random(0)
    tree = parts(7)["params"]
    leaves, structure = jax.tree.flatten(tree)
    before = int(sharding.fingerprint(tree))
    for number, bit in itertools.product(range(len(leaves)), range(32)):
        changed = np.array(leaves[number])
        words = changed.reshape(-1).view(np.uint32)
        words[rng.randrange(words.size)] ^= np.uint32(1 << bit)
        flipped = jax.device_put(changed, leaves[number].sharding)
        flipped = [*leaves[:number], flipped, *leaves[number + 1 :]]
        after = int(sharding.fingerprint(jax.tree.unflatten(structure, flipped)))
        assert after != before, (number, bit)


def test_fingerprint_depends_on_places_but_not_on_the_sharding():
    tree = parts(7)["params"]
    assert int(sharding.fingerprint(tree)) == int(
        sharding.fingerprint(parts(7, "8,1,1")["params"])
    )
    swapped = {"x": tree["y"], "y": tree["x"]}
    assert int(sharding.fingerprint(tree)) != int(sharding.fingerprint(swapped))
    row = jnp.arange(5.0)
    assert int(sharding.fingerprint(row)) != int(sharding.fingerprint(row[::-1]))


def damage(file: Path, how: str) -> bytes:
    data = file.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
    file.write_bytes(flipped if how == "flip" else data[:middle])
    return data


def reading(folder: Path):
    """The newest checkpoint as a run reads it at its start."""
    checkpoints = Checkpoints(folder)
    try:
        step = checkpoints.latest
        return checkpoints.loop(step), bits(checkpoints.restore(step, abstract(parts())))
    finally:
        checkpoints.close()


def attempt(folder: Path):
    """What ``reading`` gives, and what it complains of."""
    try:
        return reading(folder), None
    except InputError as error:
        return None, str(error)


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_damaged_file_is_noticed(saved, how):
    """Whichever file it is: one sentence with the folder, or it did not matter."""
    then = LOOP, bits(parts(3))
    noticed = set()
    for file in sorted(path for path in (saved / "3").rglob("*") if path.is_file()):
        whole = damage(file, how)
        if not whole:
            continue
        found, error = attempt(saved)
        if error:
            assert error.startswith(f"{saved / '3'}: this checkpoint cannot be read ("), file
            assert "delete this folder to go on from step 1, or" in error
            assert "\n" not in error
            noticed.add(file.relative_to(saved / "3").parts[0])
        else:
            assert found == then, file
        file.write_bytes(whole)
    assert noticed >= {"loop", "params", "opt_state"}
    assert reading(saved) == then


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_the_largest_file_matters(tmp_path, how):
    tree = {"params": {"w": jax.random.normal(jax.random.key(0), (50_000,))}}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, tree, LOOP)
    checkpoints.wait()
    checkpoints.close()
    files = [path for path in (tmp_path / "3").rglob("*") if path.is_file()]
    damage(max(files, key=lambda path: path.stat().st_size), how)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(InputError, match=r"3: this checkpoint cannot be read"):
        checkpoints.restore(3, abstract(tree))
    checkpoints.close()


def test_no_byte_of_the_loop_can_change(saved):
    file = saved / "3" / "loop" / "metadata"
    whole = file.read_bytes()
    for place in range(0, len(whole), 29):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        checkpoints = Checkpoints(saved)
        with pytest.raises(InputError, match="c/3: this checkpoint cannot be read"):
            checkpoints.loop(3)
        checkpoints.close()


def test_a_damaged_checkpoint_without_an_older_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, parts(), LOOP)
    checkpoints.wait()
    checkpoints.close()
    damage(tmp_path / "5" / "loop" / "metadata", "cut")
    with pytest.raises(InputError, match=r"\); start again in a new run_dir$"):
        reading(tmp_path)


def test_another_architecture(saved):
    def other(**leaves):
        tree = abstract(parts())
        tree["params"]["x"] |= leaves
        tree["params"]["x"] = {k: v for k, v in tree["params"]["x"].items() if v is not None}
        return tree

    one = abstract(parts())["params"]["x"]["a"]
    wider = jax.ShapeDtypeStruct((16, 12), one.dtype, sharding=one.sharding)
    narrower = jax.ShapeDtypeStruct((4, 12), one.dtype, sharding=one.sharding)
    half = jax.ShapeDtypeStruct(one.shape, jnp.bfloat16, sharding=one.sharding)
    for leaves, message in (
        ({"a": wider}, r"x/a \(there float32\[8, 12\], now float32\[16, 12\]\)"),
        ({"a": narrower}, r"x/a \(there float32\[8, 12\], now float32\[4, 12\]\)"),
        ({"a": half}, r"x/a \(there float32\[8, 12\], now bfloat16\[8, 12\]\)"),
        ({"z": one}, r"x/z \(there missing, now float32\[8, 12\]\)"),
        ({"a": None}, r"x/a \(there float32\[8, 12\], now missing\)"),
        (dict.fromkeys("abns"), r"x/a .*, x/b .*, x/n .*, 1 more"),
    ):
        checkpoints = Checkpoints(saved)
        with pytest.raises(InputError, match=message) as caught:
            checkpoints.restore(3, other(**leaves))
        assert str(caught.value).startswith(
            f"{saved / '3'}: this checkpoint is of another model"
        )
        checkpoints.close()


def test_a_partly_written_checkpoint_is_not_seen(saved):
    """What a kill leaves: a temporary folder of a save, half of a folder being deleted."""
    (saved / "3").rename(saved / "7.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(saved, keep=1)
    checkpoints.save(4, parts(4), LOOP)
    checkpoints.wait()
    checkpoints.close()
    assert steps(saved) == {"1", "4"}

    (saved / "8.orbax-checkpoint-tmp" / "params.orbax-checkpoint-tmp").mkdir(parents=True)
    (saved / "2").mkdir()
    checkpoints = Checkpoints(saved, keep=1)
    assert checkpoints.latest == 4
    assert bits(checkpoints.restore(4, abstract(parts()))) == bits(parts(4))
    checkpoints.save(5, parts(5), LOOP)
    checkpoints.wait()
    checkpoints.close()
    assert steps(saved) == {"1", "5"}


def test_the_folder_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"file/c: saving a checkpoint failed \(Not a directory"
    ):
        Checkpoints(tmp_path / "file" / "c")


DISK_FULL = """
    import resource, sys
    import jax
    import jax.numpy as jnp
    from fgrlhf_jax.runtime.checkpoint import Checkpoints
    from launch.shared import cli

    def parts(seed):
        noise = jax.random.normal(jax.random.key(seed), (50_000,))
        return {"params": {"w": noise}, "opt_state": {"m": jnp.ones(7)}}

    def main(config):
        checkpoints = Checkpoints(sys.argv.pop(), keep=1)
        checkpoints.save(1, parts(1), {"done": False})
        checkpoints.wait()
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST, hard))  # from here on writes fail
        checkpoints.save(2, parts(2), {"done": False})
        SECOND
        print("not reached")

    folder = sys.argv[1]
    sys.argv[1:] = []
    cli.command(lambda config: (sys.argv.append(folder), main(config)), "configs/score.py", "")
"""


@pytest.mark.parametrize(
    ("limit", "second"),
    [
        ("4096", "checkpoints.wait()"),  # an array does not fit
        ("1", "checkpoints.save(3, parts(3), {})"),  # nothing does; noticed by the next save
    ],
)
def test_disk_full_while_saving(tmp_path, limit, second):
    folder = tmp_path / "c"
    program = textwrap.dedent(DISK_FULL).replace("MOST", limit).replace("SECOND", second)
    run = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
        cwd=Path(__file__).parents[2],
    )
    assert (run.returncode, run.stdout) == (2, ""), run.stderr
    assert run.stderr == (
        f"error: {folder}: saving a checkpoint failed (File too large); the last good one is "
        "step 1; free some space and run the same command again\n"
    )
    then = {"params": {"w": jax.random.normal(jax.random.key(1), (50_000,))}}
    checkpoints = Checkpoints(folder, keep=1)
    assert checkpoints.latest == 1
    assert bits(checkpoints.restore(1, abstract(then))) == bits(then)
    checkpoints.save(2, then, {})  # and the run can go on
    checkpoints.wait()
    checkpoints.close()
    assert steps(folder) == {"2"}
