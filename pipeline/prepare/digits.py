"""The digits that scikit-learn brings along."""

import numpy as np

from pipeline.config.sections import DataConfig
from pipeline.prepare.decode import Form, fit
from pipeline.prepare.raw import RawImages

__all__ = ["load_digits"]


def load_digits(data: DataConfig) -> RawImages:
    """Scikit-learn's bundled digits: 1,797 scans of 8x8."""
    from sklearn import datasets

    digits = datasets.load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # scans hold 0 to 16
    splits = np.full(len(images), "train")
    labels = digits.target.astype(np.int64)
    return RawImages(fit(images, Form.of(data)), labels, splits, tuple("0123456789"))
