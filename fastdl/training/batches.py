"""Batches cut from tensors that lie in memory, each a pure function of (seed, epoch, number).

The data loader hands out nothing but batch numbers; the batch itself follows from the number. So there is no state of
a shuffled iterator to save, and a run that resumes in the middle of an epoch sees the batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl.data import Split
from fastdl.models import derive_seed

__all__ = ["BatchNumbers", "EvaluationBatches", "TrainingBatches"]


class BatchNumbers:
    """The data loader of an epoch: yields 0, 1, ... count - 1, or after loading a state what that left over."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._first = 0
        self._next = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        # A generator, so nothing happens before the first next: Lightning makes iterators that it may not use.
        first, self._first = self._first, 0
        for number in range(first, self._count):
            self._next = number + 1
            yield number

    def state_dict(self) -> dict[str, int]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._first = self._next = state["next"]


class EvaluationBatches:
    """The examples of a split in their order, normalised, on a device.

    Args:
        split: the examples.
        batch_size: examples of a batch; the last one may be smaller.
        mean, std: of each channel, of values scaled to [0, 1].
        device: where the examples are kept and the batches are made.
    """

    def __init__(
        self, split: Split, *, batch_size: int, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
    ) -> None:
        # Channels last, in memory and so in every batch cut from it: the layout that convolutions are fastest in.
        self._images = split.images.to(device).permute(0, 2, 3, 1).contiguous()
        self._labels = split.labels.to(device)
        self._batch_size = batch_size
        self._device = device
        deviation = torch.tensor(std, dtype=torch.float64)
        self._scale = (1 / (255 * deviation)).to(device, torch.float32)
        self._shift = (-torch.tensor(mean, dtype=torch.float64) / deviation).to(device, torch.float32)

    def __len__(self) -> int:
        return -(-len(self._labels) // self._batch_size)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return images (n, C, H, W) in float32 and channels_last, and labels (n,)."""
        chosen = slice(number * self._batch_size, (number + 1) * self._batch_size)
        return self._normalize(self._images[chosen]), self._labels[chosen]

    @property
    def batch_size(self) -> int:
        """Examples of a batch."""
        return self._batch_size

    def examples(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the first ``count`` examples, or all if there are fewer, as `batch` returns those of a batch."""
        return self._normalize(self._images[:count]), self._labels[:count]

    def _normalize(self, images: Tensor) -> Tensor:
        return torch.addcmul(self._shift, images.to(torch.float32), self._scale).permute(0, 3, 1, 2)


class TrainingBatches(EvaluationBatches):
    """Shuffled, augmented batches of one size. Arguments as for :class:`EvaluationBatches`, and:

    Args:
        seed: of the order and the augmentation. Both depend on it, the epoch and the number of the batch alone, and
            are drawn on the CPU: the same images come on every device and with every model.
        crop_padding: pixels of zero padding around an image before a window of its size is cut out of it.
        random_flip: mirror half of the images.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        seed: int,
        crop_padding: int = 0,
        random_flip: bool = False,
    ) -> None:
        super().__init__(split, batch_size=min(batch_size, len(split)), mean=mean, std=std, device=device)
        self._seed = seed
        self._crop_padding = crop_padding
        self._random_flip = random_flip
        self._order = (-1, torch.empty(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self._labels) // self._batch_size

    def training_batch(self, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        """Return batch ``number`` of ``epoch``: images (batch_size, C, H, W), normalised, and labels (batch_size,)."""
        chosen = self._epoch_order(epoch)[number * self._batch_size : (number + 1) * self._batch_size].to(self._device)
        images = self._images[chosen]
        if self._crop_padding or self._random_flip:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "augmentation", epoch, number))
            images = crop_and_flip(images, self._crop_padding, self._random_flip, generator)
        return self._normalize(images), self._labels[chosen]

    def _epoch_order(self, epoch: int) -> Tensor:
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
            self._order = (epoch, torch.randperm(len(self._labels), generator=generator))
        return self._order[1]


def crop_and_flip(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift each image by up to ``padding`` pixels in both directions, zeros coming in, and mirror half of them.

    Args:
        images: (N, H, W, C).
        padding: largest shift.
        flip: whether to mirror at all.
        generator: on the CPU.

    Returns:
        Images of the same shape, from one gather for the whole batch.
    """
    count, height, width, _ = images.shape
    tops, lefts = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    mirrored = torch.randint(0, 2, (count,), generator=generator) == 1
    rows = tops[:, None] + torch.arange(height)
    columns = torch.arange(width).expand(count, width)
    if flip:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    columns = columns + lefts[:, None]
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    index = [
        part.to(images.device) for part in (torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :])
    ]
    return padded[index[0], index[1], index[2]]
