"""The knobs of every method with their defaults, so that each can be overridden on the command
line, e.g. --config.method.omega=0.2. What they mean stands in fda_jax/layers/methods.py, whose
defaults these repeat (a test compares them)."""

import difflib

from ml_collections import ConfigDict

KNOBS = {
    "full_precision": {},
    "identity": {"scale": "layer"},
    "ste": {"scale": "layer", "window": 1.0},
    "bireal": {"scale": "filter"},
    "fda": {
        "scale": "layer",  # mean |w| of the layer, as the authors' released code
        "omega": 0.1,  # radians per unit; not in the paper, BiBench's reading
        "window": 1.0,  # the slope is 0 for |t| > window; likewise
        "num_terms_start": 10,  # N = n + 1 terms; the paper's setting 3 runs from n = 9 ...
        "num_terms_end": 19,  # ... to n = 18
        "noise": "forward",  # "forward" (Eq. 14), "backward" (Algorithm 1), "none"
        "noise_scale": 0.1,  # alpha at the start; half a cosine to 0
        "noise_shortcut": "sine",  # eta: "none", "linear", "sine" (Table 4)
        "noise_shortcut_slope": 0.1,  # a, section 3.2
        "noise_reduction": 64,  # k, section 2.3
    },
}


def method(name: str) -> ConfigDict:
    """The configuration group of a method.

    Args:
      name: of the method; "" means "fda".

    Returns:
      ConfigDict with the name and the knobs.

    Raises:
      ValueError: an unknown name; the nearest is named.
    """
    name = name or "fda"
    if name not in KNOBS:
        nearest = difflib.get_close_matches(name, KNOBS, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise ValueError(f"there is no method {name!r}{hint}: use one of {', '.join(KNOBS)}")
    return ConfigDict({"name": name, **KNOBS[name]})
