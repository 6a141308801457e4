"""Checkpoints of a run: asynchronous, atomic, verified. The only file that knows orbax."""

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import files, sharding


class Checkpoints:
    """Saves and restores a train state in ``folder/STEP/``.

    A checkpoint has the parts of the state (separate, so that parameters can be read without the
    optimizer) and a small JSON ``loop``. It also stores names and shapes of every part, a
    fingerprint of its bits, and a checksum of this metadata. A save runs in the background and gets
    its final name when it is complete; a restore never sees an interrupted save.

    Args:
      keep: number of newest checkpoints to keep, besides the one of step ``best``.

    Attributes:
      best: the step of the best checkpoint; a resumed run sets it from ``loop``.

    Raises:
      InputError: the folder cannot be created.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep, self.best = Path(folder).absolute(), keep, 0
        with self._as_input_error():
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(barrier_sync_fn=_barrier()),
            )
            self.manager = ocp.CheckpointManager(self.folder, options=options)

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        """orbax's preservation policy: whether to keep each checkpoint, oldest first."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        return [step in (*steps[-self.keep :], self.best) for step in steps]

    @property
    def latest(self) -> int | None:
        return self.manager.latest_step()

    @property
    def steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def save(self, step: int, parts: dict, loop: dict) -> None:
        """Starts a save; when it returns, ``parts`` may be donated and ``loop`` may be changed.

        Raises InputError if this or the previous save failed, such as on a full disk. Earlier
        checkpoints stay.
        """
        metadata = {
            "step": step,
            "loop": json.loads(json.dumps(loop)),  # a copy, since it is written later
            "layouts": {name: layout(part) for name, part in parts.items()},
            "fingerprints": {n: int(sharding.fingerprint(part)) for n, part in parts.items()},
        }
        args = ocp.args.Composite(
            loop=ocp.args.JsonSave(metadata | {"digest": _digest(metadata)}),
            **{name: ocp.args.StandardSave(part) for name, part in parts.items()},
        )
        with self._as_input_error():
            self.manager.save(step, args=args)

    def wait(self) -> None:
        """Blocks until the current save is complete; raises InputError if it failed."""
        with self._as_input_error():
            self.manager.wait_until_finished()

    @contextlib.contextmanager
    def _as_input_error(self):
        try:
            yield
        except Exception as error:  # orbax's storage layer raises any type
            steps = [int(p.name) for p in self.folder.glob("*") if p.name.isdigit()]
            last = f"the last good one is step {max(steps)}" if steps else "there is no earlier one"
            cause = files.system_error(error)
            raise InputError(
                f"{self.folder}: saving a checkpoint failed ({cause.strerror}); {last}; "
                f"{files.advice(cause)}"
            ) from error

    def loop(self, step: int) -> dict:
        """The JSON saved with ``step``; raises InputError as :meth:`restore`."""
        return self._metadata(step)["loop"]

    def _metadata(self, step: int) -> dict:
        metadata = self._restore(step, loop=ocp.args.JsonRestore())["loop"]
        digest = metadata.pop("digest", None) if isinstance(metadata, dict) else None
        if digest is None or digest != _digest(metadata) or metadata["step"] != step:
            raise InputError(self._corruption(step, "its loop/metadata has changed"))
        return metadata

    def restore(self, step: int, abstract: dict) -> dict:
        """Restores the parts named in ``abstract``.

        Args:
          abstract: part -> tree of ShapeDtypeStruct with shardings; the mesh may differ.

        Raises:
          InputError: the checkpoint is of another architecture, incomplete or corrupted.
        """
        metadata = self._metadata(step)
        for name, part in abstract.items():
            saved, current = metadata["layouts"].get(name, {}), layout(part)
            differing = [
                f"{leaf} (saved {saved.get(leaf, 'missing')}, now {current.get(leaf, 'missing')})"
                for leaf in sorted(saved.keys() | current.keys())
                if saved.get(leaf) != current.get(leaf)
            ]
            if differing:
                differing[3:] = [f"{len(differing) - 3} more"] if len(differing) > 3 else []
                raise InputError(
                    f"{self.folder / str(step)}: this checkpoint is of another model; its {name} "
                    f"differ in {', '.join(differing)}; continue with that model, or start in a "
                    "new run_dir"
                )
        args = {name: ocp.args.StandardRestore(part) for name, part in abstract.items()}
        parts = {name: part for name, part in self._restore(step, **args).items() if name in args}
        for name, part in parts.items():
            if int(sharding.fingerprint(part)) != metadata["fingerprints"][name]:
                raise InputError(self._corruption(step, f"the bits of its {name} have changed"))
        return parts

    def _restore(self, step: int, **args):
        try:
            return self.manager.restore(step, args=ocp.args.Composite(**args))
        except Exception as error:
            reason = files.system_error(error).strerror
            raise InputError(self._corruption(step, reason)) from error

    def _corruption(self, step: int, reason: str) -> str:
        earlier = [s for s in self.manager.all_steps() if s < step]
        advice = "start again in a new run_dir"
        if step == self.latest and earlier:
            advice = f"delete this folder to resume from step {max(earlier)}, or {advice}"
        return f"{self.folder / str(step)}: this checkpoint cannot be read ({reason}); {advice}"

    def close(self) -> None:
        """Waits for the current save; raises InputError if it failed."""
        with self._as_input_error():
            self.manager.close()


def _barrier() -> Callable:
    """orbax's barrier, but a process whose save failed raises instead of waiting for the others."""
    wait = ocp.multihost.get_barrier_sync_fn()

    def wait_or_fail(*, key: str, timeout_ms: int) -> None:
        if error := sys.exc_info()[1]:
            raise error
        wait(key=key, timeout_ms=timeout_ms)

    return wait_or_fail


def layout(part) -> dict[str, str]:
    """Types and shapes of a tree of arrays: ``{"backbone/norm/scale": "float32[64]", …}``."""
    return {
        sharding.path_name(path): f"{leaf.dtype.name}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(part)
    }


def _digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
