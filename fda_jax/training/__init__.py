"""Floor 3: plan, optimizer, step, devices and checkpoints of a run."""
