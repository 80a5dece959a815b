"""Makes fda_jax/data/digits.npz from scikit-learn's digits. Run: python tools/make_digits.py.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0. scikit-learn holds its test
part: 1,797 images of 8x8 pixels with values 0..16. They are stored unchanged.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]

SOURCE = (
    "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning "
    "Repository, 1998, https://doi.org/10.24432/C50P49 (test part, as in scikit-learn)"
)
LICENCE = "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/"
TARGET = Path(__file__).resolve().parents[1] / "fda_jax" / "data" / "digits.npz"


def main() -> None:
    """Writes the file and says what is in it."""
    pixels, labels = load_digits(return_X_y=True)
    values = pixels.reshape(-1, 8, 8).astype(np.uint8)
    np.savez_compressed(
        TARGET,
        values=values,
        labels=labels.astype(np.uint8),
        source=np.array(SOURCE),
        licence=np.array(LICENCE),
    )
    print(f"{TARGET}: {len(labels)} images, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
