"""The knobs of every method with their defaults, so that each can be overridden on the command
line, e.g. --config.method.omega=0.2. What they mean stands in fda_jax/layers/methods.py, whose
defaults these repeat (a test compares them).

A knob without a comment means what the first comment on a knob of that name says; the reference of
the knobs in the documentation is made from these comments."""

import difflib

from ml_collections import ConfigDict

# Of the noise module on another estimator than FDA-BNN's, as in its Table 3.
NOISE = {
    # The noise module: "forward" adds it to the signs (Eq. 14), "backward" to the gradients alone
    # (Algorithm 1), "none" leaves it out.
    "noise": "none",
    "noise_scale": 0.1,  # alpha at the start
    "noise_shortcut": "sine",  # eta: "none", "linear", "sine" (Table 4)
    "noise_shortcut_slope": 0.1,  # a, section 3.2
    "noise_reduction": 64,  # k, by which its hidden layer is narrower; section 2.3
    "noise_schedule": "cosine",  # of alpha, which ends at 0; or "linear", "constant"
    "noise_end": 1.0,  # share of the training after which alpha is 0, in (0, 1]
    "noise_weight_axis": "filter",  # d, not in the paper; or "channels" (of a position)
    "noise_activation_axis": "channels",  # likewise (of a pixel); or "pixels" (of a channel)
}

KNOBS = {
    "full_precision": {},
    "identity": {
        # What the signs are multiplied by: mean |w| of the "layer" or of each "filter", the
        # "power_of_two" nearest to the filter's mean, a "learned" number a filter, or "none".
        "scale": "layer",
        "scale_in_gradient": False,  # whether the scale multiplies the weights' gradient too
    },
    "ste": {
        "scale": "layer",
        "scale_in_gradient": False,  # as fda's
        "window": 1.0,  # the slope is 0 for |t| > window
        **NOISE,
    },
    "binarynet": {
        "window": 1.0,  # of the activations' slope: where the paper's hardtanh is not flat
    },
    "dorefa": {
        "weight_bits": 1,  # 1: Eq. 7, the mean |w| of the layer times the sign; more: Eq. 9
        "activation_bits": 1,  # more: 2^bits levels of [0, 1]
        "activation_levels": "sign",  # of one bit: {-1, 1}, or "unsigned": {0, 1}, the paper's
    },
    "xnor_net": {
        "scale": "filter",  # Eq. 6
    },
    "xnor_net_pp": {
        "scale_shape": "channel_height_width",  # the paper's case 4, or "channel", its case 1
    },
    "tbn": {
        "scale": "filter",
        "scale_in_gradient": False,  # as in the authors' code
        "threshold": 0.4,  # activations below this share of their mean magnitude become 0
        "window": 1.0,  # of the activations' slope
    },
    "hwgq": {
        "scale": "filter",
        "scale_in_gradient": False,  # as in the authors' code
        "activation_bits": 2,  # 2^bits - 1 levels above 0
    },
    "bireal": {
        "scale": "filter",
        "scale_in_gradient": True,  # as in the paper's Eq. 9; the authors' code leaves it out
    },
    "bireal_prelu": {
        "scale": "filter",
        "scale_in_gradient": True,  # as bireal's
    },
    "bnn_plus": {
        "scale": "filter",
        "beta": 5.0,  # steepness per unit; trained in the paper
        "regularizer": "l1",  # of the latent weights: or "l2", "none"
        "regularizer_weight": 1e-6,  # lambda; our choice
        **NOISE,
    },
    "dsq": {
        "scale": "layer",
        "alpha": 0.2,  # distance from the sign at the window's ends; trained in the paper
        "window": 1.0,  # half-width of the clipping range; likewise
        "learnable": False,  # True trains both, as the paper; without a noise module
        **NOISE,
    },
    "quantization_networks": {
        "scale": "learned",
        "temperature_start": 10.0,  # T, per unit; the authors' code adds 10 an epoch
        "temperature_end": 30.0,  # theirs is 1000, which needs the start from a trained network
    },
    "irnet": {
        "scale": "power_of_two",
        "t_start": 1e-3,  # steepness t; the authors' ResNet-20, their VGG-Small starts at 0.1
        "t_end": 10.0,  # from t_start in equal ratios
        "window": 1.0,  # of the activations' slope: where the authors' hardtanh is not flat
    },
    "resnete": {
        "window": 1.25,  # of both slopes, and the bound of latent weights
    },
    "bop": {
        "threshold": 1e-8,  # a weight flips when its mean gradient exceeds this
        "gamma": 1e-4,  # share of the newest gradient in that mean
        "gamma_decay": 0.1,  # of gamma after each fifth of the training; the authors' CIFAR-10
        "window": 1.0,  # of the activations' slope
    },
    "reactnet": {
        "scale": "filter",
        "scale_in_gradient": True,  # as bireal's; the authors' code leaves it out
        "weights": "binary",  # or "real", the authors' first step
        # Of the signs: "bireal", the authors', or "fourier", FDA-BNN's, with the knobs below.
        "slope": "bireal",
        "omega": 0.1,  # as fda's
        "window": 1.0,  # likewise
        "num_terms_start": 10,  # likewise
        "num_terms_end": 19,  # likewise
        **NOISE,
    },
    "reste": {
        "scale": "layer",
        "power_end": 3.0,  # o: the slope is that of the o-th root at the end, of x at the start
        "inner": 0.1,  # below it the root is replaced by a straight line
        "window": 1.5,  # the slope is 0 beyond
    },
    "binaryconnect": {
        "scale": "layer",  # the paper has "none"
        "activations": "binary",  # or "real", the paper's
        "window": 1.0,  # of the activations' slope
    },
    "proxconnect": {
        # The unit of the quantizer: "none" for +-1, as in the papers, "layer" or "filter" for +-
        # the mean |w| of either.
        "scale": "layer",
        "activations": "binary",  # or "real"
        "rho_start": 0.0,  # weights this near to +-1 become +-1; the schedule is our choice
        "rho_end": 2.0,  # >= 1: the sign up to |w| = 1 + rho
        "varrho_start": 0.0,  # half the jump at 0
        "varrho_end": 0.0,  # on a straight line, as rho
        "window": 1.0,  # of the activations' slope
    },
    "reverse_proxconnect": {
        "scale": "layer",  # the unit of the quantizer, as proxconnect's
        "activations": "binary",  # or "real"
        "rho_end": 1e-3,  # from 0; acts anew in each step, so a short run needs more
        "hard_from": 0.667,  # progress from which steps start at the signs; as ProxQuant's
        "window": 1.0,  # of the activations' slope
    },
    "proxquant": {
        "scale": "layer",  # the unit of the quantizer, as proxconnect's
        "activations": "binary",  # or "real", the paper's
        "strength": 3e-4,  # lambda = progress x strength; the authors' 0.01 x 1e-4 x 300 epochs
        "hard_from": 0.667,  # the authors' epoch 200 of 300
        "window": 1.0,  # of the activations' slope
    },
    "bnn_plus_plus": {
        "scale": "layer",  # the unit of the quantizer, as proxconnect's
        "activations": "binary",  # or "real", or "pair" for the weights' two maps
        "mu_start": 1.0,  # steepness per unit of the scale; the schedule is our choice
        "mu_end": 10.0,  # on a straight line
        "window": 1.0,  # of the activations' slope
    },
    "abc_net": {
        "weight_bases": 1,  # M; the paper goes up to 5
        "activation_bases": 1,  # N; likewise
        "scale": "layer",  # statistics and factors of a basis, or "filter"
    },
    "pcnn": {
        "regularizer": 1e-4,  # lambda of the projection loss; the paper's best on CIFAR-10
        "window": 1.0,  # of the activations' slope
    },
    "lns": {
        "stage": "mapping",  # or "sign", the stage before
        "scale": "filter",
        "window": 1.0,  # of both slopes
        "flip_rate": 0.1,  # share of signs taken to be wrong; our choice, as those below
        "supervision": 0.1,  # weight of the loss of noisy signs
        "reduction": 64,  # by which the mapping's hidden layer is narrower than a filter
    },
    "rbnn": {
        "t_start": 1e-2,  # steepness of the slopes
        "t_end": 10.0,  # in equal ratios
        "refits": 400,  # of the rotations in a run: one an epoch of the recipe
    },
    "recu": {
        "tau_start": 0.85,  # weights beyond the quantile tau are clamped to it
        "tau_end": 0.99,  # tau grows as e^progress
    },
    "adabin": {
        "t_start": 1e-3,  # steepness, as irnet's
        "t_end": 10.0,
    },
    "biper": {
        "stage": "binary",  # or "real", the stage before
        "frequency": 20.0,  # radians per unit; all of the authors' scripts
        "regularizer": 0.037,  # tau; the authors' CIFAR-10 first stage, 0 on ImageNet
    },
    "fda": {
        "scale": "layer",  # mean |w| of the layer, as the authors' released code
        # Whether the scale multiplies the weights' gradient too. False as in Eq. 8 of DoReFa-Net,
        # the paper's baseline, and in the placeholder of the released code.
        "scale_in_gradient": False,
        # Radians per unit; not in the paper. BiBench's, and best of six in results/omega_1_epoch.
        "omega": 0.1,
        "window": 1.0,  # the slope is 0 for |t| > window; not in the paper either
        "num_terms_start": 10,  # N = n + 1 terms at the start; setting 3 of the paper: n = 9
        "num_terms_end": 19,  # at the end; likewise n = 18
        **NOISE,
        "noise": "forward",
    },
}

# What the stages of a method set differently from the run, by the method's name. Each row is a
# function of the run's learning rate, of which a stage may take a part; see `stages`.
STAGES = {
    # The authors' two thirds (600 of 900 epochs on CIFAR-10, 200 of 300 on ImageNet), the learning
    # rate of ImageNet's second stage and the regulariser of CIFAR-10's.
    "biper": lambda learning_rate: {
        "stage1": {"epochs_share": 2 / 3, "method": {"stage": "real"}},
        "stage2": {
            "method": {"regularizer": 0.0468},
            "optimizer": {"learning_rate": 0.1 * learning_rate},
        },
    },
    # FDA-BNN counts 120 epochs more for LNS than its own 400. LNS's own paper starts these at a
    # learning rate of 0.01 after 0.1 and has no weight decay (as https://ri.k117.org quotes its
    # experiments on CIFAR-10); here weight decay is the run's.
    "lns": lambda learning_rate: {
        "stage1": {"epochs_share": 400 / 520, "method": {"stage": "sign"}},
        "stage2": {"optimizer": {"learning_rate": 0.1 * learning_rate}},
    },
}


def method(name: str) -> ConfigDict:
    """The configuration group of a method.

    Args:
      name: of the method; "" means "fda", and "module:function" one's own (docs/add_a_method.md).

    Returns:
      ConfigDict with the name and the knobs.

    Raises:
      ValueError: an unknown name; the nearest is named.
    """
    name = name or "fda"
    if ":" in name:
        from fda_jax.layers import knobs_of  # here, for the rest of a configuration needs no JAX

        return ConfigDict({"name": name, **knobs_of(name)})
    if name not in KNOBS:
        nearest = difflib.get_close_matches(name, KNOBS, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise ValueError(
            f"there is no method {name!r}{hint}: use one of {', '.join(KNOBS)}, or one of your own "
            "as module:function"
        )
    return ConfigDict({"name": name, **KNOBS[name]})


def stages(name: str, config: ConfigDict) -> ConfigDict:
    """The configuration group of a method's stages.

    Args:
      name: of the method; "" means "fda".
      config: the run's; a stage's part of its learning rate follows when that is changed.

    Returns:
      ConfigDict with a group for each stage; empty for a method that trains in one go.
    """
    if name not in STAGES:
        return ConfigDict()
    return ConfigDict(STAGES[name](config.optimizer.get_ref("learning_rate")))
