"""Does a binary network gain from a real-valued one that teaches it?

FDA-BNN with the sine module alone learns the labels, the class probabilities of a trained ResNet-20
with real weights and activations (ReActNet's loss, which leaves the labels out), or the same at a
temperature of 4. Not in FDA-BNN; networks for ImageNet are often trained so. CIFAR-10, ResNet-20 in
its plain form, the recipe of section 3.1.

The teacher is trained first, into the folder beside the sweep's that its runs look for:

    python train.py --config=configs/cifar10_resnet20.py:full_precision --workdir=runs/real_valued

Budget: 3 runs of 400 epochs a seed; --budget=0.02 makes it 8 epochs.

    python train.py --sweep=configs/sweeps/teacher.py --workdir=runs/teacher --seeds=5
    python -m fda_jax.report runs/teacher
"""

# Counts from the folder that holds a run's: runs/teacher/NAME.
TEACHER = "../../real_valued"
BASELINE = "labels"


def get_sweep() -> tuple:
    sine = {"method.noise": "none"}
    taught = {**sine, "train.teacher": TEACHER}
    return "cifar10_resnet20", {
        "labels": sine,
        "teacher": taught,
        "teacher_at_4": {**taught, "train.teacher_temperature": 4.0},
    }
