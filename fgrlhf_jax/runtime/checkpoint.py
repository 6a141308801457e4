"""Checkpoints of a run: asynchronous, atomic, verified. The only file that knows orbax."""

import contextlib
import hashlib
import json
import operator
import os
import re
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import sharding


class Checkpoints:
    """Saves and restores a train state in ``folder/STEP/``.

    A checkpoint has the parts of the state (separate, so that parameters can be read without the
    optimizer) and a small JSON ``loop``, with which are saved the names and shapes of every part,
    a fingerprint of its bits, and a checksum of all these. A save runs in the background and gets
    its final name when it is complete; a restore never sees an interrupted one.

    Args:
      keep: how many of the newest are kept, beside the last one saved with ``best=True``.

    Raises:
      InputError: when the folder cannot be made.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = Path(folder).absolute()
        order = operator.itemgetter("order")
        best = policies.BestN(n=1, get_metric_fn=order, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(n=keep), best]),
            best_fn=order,  # without it the metrics are not on disk for the next start
            cleanup_tmp_directories=True,
        )
        with self._saving():
            self.manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest(self) -> int | None:
        return self.manager.latest_step()

    @property
    def steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def save(self, step: int, parts: dict, loop: dict, *, best: bool = False) -> None:
        """Starts saving; returns when ``parts`` may be donated and ``loop`` changed again.

        Raises:
          InputError: when this or the save before it failed (on a full disk, for example). Earlier
            checkpoints stay.
        """
        metadata = {
            "loop": json.loads(json.dumps(loop)),  # it is written later, the caller's may change
            "layouts": {name: layout(part) for name, part in parts.items()},
            "fingerprints": {n: int(sharding.fingerprint(part)) for n, part in parts.items()},
        }
        args = ocp.args.Composite(
            loop=ocp.args.JsonSave(metadata | {"digest": _digest(metadata)}),
            **{name: ocp.args.StandardSave(part) for name, part in parts.items()},
        )
        with self._saving():
            self.manager.save(step, args=args, metrics={"order": step} if best else None)

    def wait(self) -> None:
        """Blocks until the save under way is complete; raises InputError when it failed."""
        with self._saving():
            self.manager.wait_until_finished()

    @contextlib.contextmanager
    def _saving(self):
        try:
            yield
        except Exception as error:  # orbax raises what its storage layer raises: any type
            steps = [int(p.name) for p in self.folder.glob("*") if p.name.isdigit()]
            last = f"the last good one is step {max(steps)}" if steps else "there is no earlier one"
            raise InputError(
                f"{self.folder}: saving a checkpoint failed ({_reason(error)}); {last}; free some "
                "space and run the same command again"
            ) from error

    def loop(self, step: int) -> dict:
        """The JSON saved with ``step``; raises InputError as :meth:`restore`."""
        return self._metadata(step)["loop"]

    def _metadata(self, step: int) -> dict:
        metadata = self._restore(step, loop=ocp.args.JsonRestore())["loop"]
        digest = metadata.pop("digest", None) if isinstance(metadata, dict) else None
        if digest is None or digest != _digest(metadata):
            raise InputError(self._corrupted(step, "its loop/metadata has changed"))
        return metadata

    def restore(self, step: int, abstract: dict) -> dict:
        """Restores the parts named in ``abstract``.

        Args:
          abstract: part -> tree of ShapeDtypeStruct with shardings, which may be of another mesh.

        Raises:
          InputError: when the checkpoint is of another architecture, incomplete or corrupted.
        """
        metadata = self._metadata(step)
        for name, part in abstract.items():
            saved, now = metadata["layouts"].get(name, {}), layout(part)
            differing = [
                f"{leaf} (saved {saved.get(leaf, 'missing')}, now {now.get(leaf, 'missing')})"
                for leaf in sorted(saved.keys() | now.keys())
                if saved.get(leaf) != now.get(leaf)
            ]
            if differing:
                differing[3:] = [f"{len(differing) - 3} more"] if len(differing) > 3 else []
                raise InputError(
                    f"{self.folder / str(step)}: this checkpoint is of another model; its {name} "
                    f"differ in {', '.join(differing)}; go on with that model, or start in a new "
                    "run_dir"
                )
        args = {name: ocp.args.StandardRestore(part) for name, part in abstract.items()}
        parts = {name: part for name, part in self._restore(step, **args).items() if name in args}
        for name, part in parts.items():
            if int(sharding.fingerprint(part)) != metadata["fingerprints"][name]:
                raise InputError(self._corrupted(step, f"the bits of its {name} have changed"))
        return parts

    def _restore(self, step: int, **args):
        try:
            return self.manager.restore(step, args=ocp.args.Composite(**args))
        except Exception as error:
            raise InputError(self._corrupted(step, _reason(error))) from error

    def _corrupted(self, step: int, reason: str) -> str:
        earlier = [s for s in self.manager.all_steps() if s < step]
        advice = "start again in a new run_dir"
        if step == self.latest and earlier:
            advice = f"delete this folder to go on from step {max(earlier)}, or {advice}"
        return f"{self.folder / str(step)}: this checkpoint cannot be read ({reason}); {advice}"

    def close(self) -> None:
        """Waits for the save under way; raises InputError when it failed."""
        with self._saving():
            self.manager.close()


def layout(part) -> dict[str, str]:
    """Types and shapes of a tree of arrays: ``{"backbone/norm/scale": "float32[64]", …}``."""
    return {
        sharding.path_name(path): f"{leaf.dtype.name}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(part)
    }


def _reason(error: Exception) -> str:
    """The system's own message, taken out of the long one of a storage layer."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:100]


def _digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
