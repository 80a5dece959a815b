"""What a run was made with: packages, device, revision."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("fda_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment(before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Packages, Python, devices, command and git revision as JSON values.

    `revision` is None, and `dirty` too, where the package does not lie in a git checkout.

    Args:
      before: of the start before this one, if a run goes on. `earlier_revisions` keeps those of
        its revisions that are not this one's, as `label` writes them.
    """
    here = Path(__file__).resolve().parents[2]
    revision = _git(here, "rev-parse", "HEAD")
    changes = _git(here, "status", "--porcelain", "--untracked-files=no")
    made_with = {"revision": revision, "dirty": None if revision is None else bool(changes)}
    return {
        **made_with,
        "earlier_revisions": [name for name in revisions(before) if name != label(made_with)],
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "command": sys.argv,
    }


def label(surroundings: Mapping[str, Any]) -> str | None:
    """Short name of the revision that an environment.json tells of."""
    revision = surroundings.get("revision")
    return revision and revision[:8] + ("+changes" if surroundings.get("dirty") else "")


def revisions(surroundings: Mapping[str, Any] | None) -> list[str | None]:
    """Short names of all revisions that a run was trained at, the newest last."""
    if surroundings is None:
        return []
    # Older files have none but the last.
    return [*surroundings.get("earlier_revisions", []), label(surroundings)]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
