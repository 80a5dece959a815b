"""What a run was made with: packages, device, revision."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

PACKAGE = "fda_jax"
PACKAGES = (PACKAGE, "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment(before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Packages, Python, devices, command and git revision (see `checkout`) as JSON values.

    Args:
      before: of the start before this one, if a run goes on. `earlier_revisions` keeps those of
        its revisions that are not this one's, as `label` writes them.
    """
    made_with = {
        **checkout(Path(__file__).resolve().parents[2]),
        "packages": {name: _version(name) for name in PACKAGES},
    }
    return {
        **made_with,
        "earlier_revisions": [name for name in revisions(before) if name != label(made_with)],
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


def checkout(folder: Path) -> dict[str, Any]:
    """The revision of the git checkout that has the package's folder at its top, and its changes.

    Args:
      folder: that holds the package.

    Returns:
      `revision`; `dirty`, whether a file differs from it or is a new one of the package's Python;
      `changes`, a short hash of those of the package, None without any. All three are None where
      the folder is no such checkout, as that of an installed package, which may lie inside another
      project's.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    revision = _git(folder, "rev-parse", "HEAD")
    if top is None or Path(top.strip()).resolve() != folder.resolve() or revision is None:
        return {"revision": None, "dirty": None, "changes": None}
    changed = _names(folder, "diff", "HEAD", "--name-only", "--no-renames")
    new = _names(folder, "ls-files", "--others", "--exclude-standard", "--", f"{PACKAGE}/*.py")
    names = sorted(changed + new)
    return {
        "revision": revision.strip(),
        "dirty": bool(names),
        "changes": _digest(folder, [name for name in names if name.startswith(f"{PACKAGE}/")]),
    }


def label(surroundings: Mapping[str, Any]) -> str | None:
    """Short name of the code that an environment.json tells of: its revision and changes, or the
    package's version where there is none."""
    revision = surroundings.get("revision")
    if revision is None:
        version = surroundings.get("packages", {}).get(PACKAGE)
        return version and f"{PACKAGE} {version}"
    # Older files say only whether there were changes, as do newer ones of changes elsewhere.
    changes = surroundings.get("changes") or ("changes" if surroundings.get("dirty") else "")
    return revision[:8] + (changes and f"+{changes}")


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


def _digest(folder: Path, names: Sequence[str]) -> str | None:
    """A short hash of what these files hold; one that is gone counts, too."""
    if not names:
        return None
    digest = hashlib.sha256()
    for name in names:
        path = folder / name
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "gone"
        digest.update(f"{name}\0{content}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:6]


def _names(folder: Path, *words: str) -> list[str]:
    """The names of files that a git command lists, from the checkout's top."""
    command, *flags = words
    return [name for name in (_git(folder, command, "-z", *flags) or "").split("\0") if name]


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
