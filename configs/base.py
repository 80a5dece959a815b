"""Every key that exists, with its unit and source. Other configurations set differences only.

The values are the recipe of FDA-BNN, section 3.1, where the paper gives one.
"""

from ml_collections import ConfigDict

from methods import method, stages


def get_config(arg: str = "") -> ConfigDict:
    """The base configuration.

    Args:
      arg: what stands behind the colon of --config=FILE:ARG, the name of a method, or
        module:function for one's own.

    Returns:
      A ConfigDict whose keys are all there are.
    """
    config = ConfigDict()
    config.seed = 0  # of initial weights, order and augmentation
    config.model = ConfigDict(
        {
            "name": "resnet20",  # of fda_jax.models.MODELS, or module:function for one's own
            "dtype": "float32",  # of the computation, or "bfloat16"; parameters stay float32
            # Hidden layers that stay real, by patterns of their names, which fda_jax.summary
            # prints: ("stage1_block1/conv1",) or ("stage3_*",); () for none.
            "real_layers": (),
        }
    )
    config.method = method(arg)
    config.data = ConfigDict(
        {
            # digits, cifar10, cifar100, mnist, fashion_mnist, tfds:NAME or folder:PATH, where a
            # relative PATH, which counts from data.dir, is the same on every machine
            "name": "cifar10",
            "dir": "data",  # folder that holds the official files
            # Training examples to be judged by in place of the test's: to choose settings without
            # it. Stands on every output; 0 for the test's.
            "holdout": 0,
            "limit": 0,  # training examples to keep, for a quick look; 0 for all
            "image_size": 224,  # pixels; of folder: and tfds: images that vary in size
            "num_threads": 8,  # that decode images; for the same
        }
    )
    config.augment = ConfigDict(
        {
            "crop_px": 4,  # pixels of black border from which a crop is cut; 0 for none
            "flip": True,  # mirror half of the images
            # Smallest share of a photograph's area that its random crop shows, of folder: and tfds:
            # images that vary in size; 1 for the central crop that tests see. 0.08 is usual.
            "smallest_area": 0.08,
        }
    )
    config.train = ConfigDict(
        {
            "epochs": 400,  # times that every training image is seen; section 3.1
            # Share of the epochs that is trained, in (0, 1], rounded up to a whole epoch: for small
            # machines. Below 1 it stands on every output.
            "budget": 1.0,
            "batch_size": 128,  # examples a step over all devices; section 3.1
            "steps_per_call": 0,  # steps a compiled call; 0 means 1 on a CPU and 50 elsewhere
            "label_smoothing": 0.0,  # share of a label spread over all classes; the paper has none
            "ema_decay": 0.0,  # of averaged parameters for evaluation; 0 for none
            # Folder of a finished run whose last parameters are this one's first, or a file of
            # parameters, NAME.npz; "" for random ones. A relative path counts from the folder that
            # holds this run's.
            "init_from": "",
            # Folder of a finished run whose answers are learned beside the labels (knowledge
            # distillation); "" for none. A relative path counts as that of init_from.
            "teacher": "",
            "teacher_weight": 1.0,  # of its part in the loss, in (0, 1]; 1 leaves the labels out
            "teacher_temperature": 1.0,  # T > 0, by which both networks' logits are divided
        }
    )
    config.optimizer = ConfigDict(
        {
            "name": "sgd",  # or "adam", "adamw"
            "learning_rate": 0.1,  # the highest; section 3.1
            "schedule": "cosine",  # or "linear" to 0, "step", "constant"; not in the paper
            "warmup_epochs": 0.0,  # of a straight rise from 0 before the schedule
            "boundary_epochs": (),  # where the rate falls, for "step"; after the warm-up
            "boundary_factor": 0.1,  # by which it is multiplied there, for "step"
            "momentum": 0.9,  # of sgd; section 3.1
            "nesterov": False,  # of sgd
            "weight_decay": 1e-4,  # section 3.1; in the gradient for sgd and adam, as PyTorch's
            # Groups of parameters that decay. The paper does not say; its siblings decay all. The
            # logarithms and logits of a learned DSQ, "log", do not: their 0 is no small value.
            "decay_groups": ("binary", "real", "norm", "prelu", "noise", "quantizer"),
            "clip_norm": 0.0,  # largest global gradient norm; 0 for no clipping
            # Largest gradient of a parameter; 0 for no clipping. Eq. 2 reads like 1.
            "clip_value": 0.0,
        }
    )
    config.eval = ConfigDict(
        {
            "batch_size": 1000,  # examples a step over all devices
            "every_epochs": 1,  # epochs from test to test; the last epoch is always tested
            "flips": True,  # record how many binary weights changed their sign in an epoch
        }
    )
    config.checkpoint = ConfigDict(
        {
            "every_epochs": 1,  # epochs from one to the next; the last and a new best are saved too
        }
    )
    # What a step does inside the network, see docs/diagnostics.md; changes no result. A look costs
    # seven to eight training steps, two without probes (benchmarks/diagnostics_cost.py on
    # resnet_digits).
    config.diagnostics = ConfigDict(
        {
            "every_steps": 0,  # 1 looks at each step, 100 at every hundredth; 0 for off
            "probes": 8,  # pairs of forward passes that test the gradient's direction; 0 for none
        }
    )
    # Stages that follow one another, each from the parameters of the one before: stage1, stage2,
    # ... with epochs_share (of train.epochs; the last stage takes the rest) and the keys of the
    # groups above that differ. Empty for training in one go.
    config.stages = stages(arg, config)
    return config
