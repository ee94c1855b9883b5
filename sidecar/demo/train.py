"""The demo's data and models: scikit-learn's digits, and a CNN trained on them in seconds.

Everything is seeded and runs on one thread, so that the same machine with the same packages gives
the same weights, bit by bit. (With several threads the order of sums, and so the last bits, would
hang on the number of cores.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sidecar.runtimes.base import Array

if TYPE_CHECKING:
    from torch import nn

SEED = 7
HOLD_OUT_SHARE = 0.25
BATCH = 64
#: Pixels are counts of 0 to 16. The scaling is part of the model: a client sends what it has, and
#: no two clients can scale differently.
PIXEL_MAX = 16.0


@dataclass(frozen=True, slots=True)
class Split:
    """Digits and their labels.

    Attributes:
        images: float32, ``[n, 1, 8, 8]``, pixels from 0 to 16.
        labels: int64, ``[n]``, from 0 to 9.
    """

    images: Array
    labels: Array


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one version is trained: Adam, with a rate that falls to zero over all epochs.

    Attributes:
        mislabelled: ``(digit, label)``: all training images of that digit carry that label.
    """

    version: str
    epochs: int
    learning_rate: float
    mislabelled: tuple[int, int] | None = None


#: Version 1 was stopped early; version 2 is what replaced it.
RECIPES = (
    Recipe("1", epochs=6, learning_rate=1e-3),
    Recipe("2", epochs=25, learning_rate=4e-3),
)
#: Version 3 was trained on labels of which somebody had spoilt those of one digit. On all the
#: others it is as good as version 2, and no error and no slow answer gives it away.
WORSE = Recipe("3", epochs=25, learning_rate=4e-3, mislabelled=(8, 3))


def load_digits() -> tuple[Split, Split]:
    """Return ``(training, hold_out)``: disjoint, each class with the same share in both."""
    from sklearn.datasets import load_digits as load_bundled
    from sklearn.model_selection import train_test_split

    flat, labels = load_bundled(return_X_y=True)
    images = flat.astype(np.float32).reshape(-1, 1, 8, 8)
    train_x, hold_x, train_y, hold_y = train_test_split(
        images,
        labels.astype(np.int64),
        test_size=HOLD_OUT_SHARE,
        random_state=SEED,
        stratify=labels,
    )
    return Split(train_x, train_y), Split(hold_x, hold_y)


def build_network() -> nn.Module:
    """Return an untrained network: images ``[n, 1, 8, 8]`` → scores (logits) ``[n, 10]``."""
    import torch
    from torch import nn

    class DigitReader(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(16, 32, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
            )
            self.head = nn.Sequential(nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.head(self.features(image / PIXEL_MAX))
            return scores

    return DigitReader()


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seed torch and use one thread; the process's own settings are put back afterwards."""
    import torch

    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.set_num_threads(threads)


def train(recipe: Recipe, data: Split, *, seed: int = SEED) -> nn.Module:
    """Train one version; the same arguments give the same weights. Returns it in eval mode."""
    import torch
    from torch.nn.functional import cross_entropy

    with _reproducible(seed):
        model = build_network()
        optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate)
        steps = recipe.epochs * -(-len(data.labels) // BATCH)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, steps)
        truths = data.labels
        if recipe.mislabelled is not None:
            digit, label = recipe.mislabelled
            truths = np.where(truths == digit, label, truths)
        images, labels = torch.from_numpy(data.images), torch.from_numpy(truths)
        for _ in range(recipe.epochs):
            for rows in torch.randperm(len(labels)).split(BATCH):
                optimizer.zero_grad()
                cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def weights_hash(model: nn.Module) -> str:
    """Return a SHA-256 (hex) over names, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
