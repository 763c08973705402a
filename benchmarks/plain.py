"""The published SK-RD4AD loop, restated plainly: what it computes and how often, written anew.

Bottleneck and student are this project's, with equal weights; what differs is what is done around them. The published
loop decodes every image every time, runs the whole teacher, does not freeze it for autograd, and upsamples features to
compare them. Left out are the loader's processes (images are decoded in this one), the 1x1 convolution that is never
called, the ReLU after a skip, which changes nothing, and rounding to 3 decimals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from scipy.ndimage import gaussian_filter
from skimage import measure
from sklearn.metrics import auc, roc_auc_score
from torch import Tensor, nn
from torchvision import transforms

from dataset import Sample
from readers.image_io import open_image

RATE = 0.005  # weight of the consistency loss
TEACHERS = {
    "wide_res50": torchvision.models.wide_resnet50_2,
    "res50": torchvision.models.resnet50,
    "res34": torchvision.models.resnet34,
    "res18": torchvision.models.resnet18,
}


class Plain(nn.Module):
    """images (B, 3, S, S), normalized -> the teacher's and the student's levels, finest first, all in the graph.

    `teacher` is torchvision's whole network; bottleneck and student are this project's, with torch's own layers.
    """

    def __init__(self, teacher: nn.Module, bottleneck: nn.Module, student: nn.Module) -> None:
        super().__init__()
        self.teacher: Any = teacher
        self.bottleneck, self.student = bottleneck, student
        self.to(memory_format=torch.contiguous_format)
        self.requires_grad_(True)

    def train(self, mode: bool = True) -> Plain:
        """The teacher stays in evaluation mode; that is all that freezes it."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        net = self.teacher
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        levels = []
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = stage(x)
            levels.append(x)
        levels = levels[:3]  # the fourth stage is computed for nothing
        return levels, self.student(self.bottleneck(levels), levels)


def random_teacher(net: str, seed: int = 0) -> nn.Module:
    """torchvision's network with random weights; batch norm statistics keep the features' scale at all depths."""
    torch.manual_seed(seed)
    teacher = TEACHERS[net](weights=None)
    for part in teacher.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        teacher.train()(torch.randn(4, 3, 64, 64))
    return teacher.eval()


def build_optimizer(network: Plain) -> torch.optim.Optimizer:
    """Adam over student and bottleneck, in torch's default implementation."""
    trained = [*network.student.parameters(), *network.bottleneck.parameters()]
    return torch.optim.Adam(trained, lr=0.005, betas=(0.5, 0.999))


def decoded_batches(samples: Sequence[Sample], order: Sequence[int], size: int, batch_size: int) -> Iterator[Tensor]:
    """Batches of images in this order, decoded, resized and normalized every time."""
    transform = transforms.Compose(
        [
            transforms.Resize((size, size)),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    for start in range(0, len(order), batch_size):
        chosen = (samples[index] for index in order[start : start + batch_size])
        yield torch.stack([transform(open_image(sample.image).convert("RGB")) for sample in chosen])


def compute_losses(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The flattened cosine loss and the consistency loss, always both."""
    cosine = torch.zeros((), device=teacher[0].device)
    for t, s in zip(teacher, student, strict=True):
        cosine = cosine + (1 - F.cosine_similarity(t.flatten(1), s.flatten(1))).mean()
    consistency = torch.zeros((), device=teacher[0].device)
    for fine, coarse in ((1, 2), (0, 1)):
        size = teacher[fine].shape[-2:]
        upsampled_t = F.interpolate(teacher[coarse], size, mode="bilinear", align_corners=True)
        upsampled_s = F.interpolate(student[coarse], size, mode="bilinear", align_corners=True)
        difference = F.mse_loss(upsampled_t, upsampled_s) - F.mse_loss(teacher[fine], student[fine])
        consistency = consistency + difference.abs()
    return cosine, consistency


def train_step(network: Plain, optimizer: torch.optim.Optimizer, images: Tensor) -> float:
    """One step on a batch; its loss."""
    teacher, student = network(images)
    # The published step calls its loss function twice, once for each of the two terms that it returns: four terms are
    # computed, and two of them are used.
    loss = compute_losses(teacher, student)[0] + RATE * compute_losses(teacher, student)[1]
    optimizer.zero_grad()  # of student and bottleneck; the teacher's gradients add up, unused
    loss.backward()
    optimizer.step()
    return loss.item()


def train(
    network: Plain,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    order: Sequence[int],
    size: int,
    batch_size: int,
) -> list[float]:
    """The loss of each step of a pass over the samples in this order."""
    device = next(network.parameters()).device
    network.train()
    batches = decoded_batches(samples, order, size, batch_size)
    return [train_step(network, optimizer, images.to(device)) for images in batches]


def anomaly_map(teacher: Sequence[Tensor], student: Sequence[Tensor], size: int) -> np.ndarray:
    """The levels of one image -> (size, size): cosine distances, each upsampled, added and smoothed."""
    total = np.zeros((size, size))
    for t, s in zip(teacher, student, strict=True):
        distance = (1 - F.cosine_similarity(t, s))[:, None]
        total += F.interpolate(distance, size=size, mode="bilinear", align_corners=True)[0, 0].cpu().numpy()
    return gaussian_filter(total, sigma=4)


@torch.no_grad()
def predict(network: nn.Module, image: Tensor) -> np.ndarray:
    """A batch of one image, normalized -> its anomaly map (S, S)."""
    teacher, student = network(image)
    return anomaly_map(teacher, student, image.shape[-1])


def evaluate(network: nn.Module, samples: Sequence[Sample], size: int, device: torch.device) -> dict[str, float]:
    """image_auroc, pixel_auroc and aupro_per_image of a test set, one image at a time."""
    network.eval()
    labels: list[int] = []
    scores: list[float] = []
    pixel_labels: list[int] = []
    pixel_scores: list[float] = []
    areas: list[float] = []
    for sample, image in zip(samples, decoded_batches(samples, range(len(samples)), size, 1), strict=True):
        predicted = predict(network, image.to(device))
        mask = read_mask(sample, size)
        if mask.any():
            areas.append(aupro(mask[None], predicted[None]))
        labels.append(int(mask.max()))
        scores.append(float(predicted.max()))
        pixel_labels.extend(mask.astype(int).ravel())
        pixel_scores.extend(predicted.ravel())
    return {
        "image_auroc": float(roc_auc_score(labels, scores)),
        "pixel_auroc": float(roc_auc_score(pixel_labels, pixel_scores)),
        "aupro_per_image": float(np.mean(areas)),
    }


def read_mask(sample: Sample, size: int) -> np.ndarray:
    """(size, size) bool: resized as an image, then thresholded at one half."""
    if sample.mask is None:
        return np.zeros((size, size), bool)
    transform = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor()])
    return transform(open_image(sample.mask).convert("L"))[0].numpy() > 0.5


def aupro(masks: np.ndarray, maps: np.ndarray, steps: int = 200) -> float:
    """Masks (n, H, W) bool and maps of the same shape -> the published area under the per-region overlap.

    As in the published code, each of the `steps` thresholds labels all regions again, inverts the masks again as 64-bit
    integers, and writes the binary maps in two assignments. Rates below 0.3 are divided by the largest of them. The
    published table of points, to which every threshold appends a row, is a list here.
    """
    masks = masks.astype(int)
    if set(masks.flatten()) != {0, 1}:
        raise ValueError("masks hold 0 and 1, both")
    low, high = maps.min(), maps.max()
    overlaps, rates = [], []
    predicted = np.zeros_like(maps, dtype=bool)
    for threshold in np.arange(low, high, (high - low) / steps):
        predicted[maps <= threshold] = False
        predicted[maps > threshold] = True
        shares = []
        for mask, binary_map in zip(masks, predicted, strict=True):
            for region in measure.regionprops(measure.label(mask)):
                rows, columns = region.coords[:, 0], region.coords[:, 1]
                shares.append(binary_map[rows, columns].sum() / region.area)
        overlaps.append(np.mean(shares))
        outside = 1 - masks
        rates.append(np.logical_and(outside, predicted).sum() / outside.sum())
    kept = np.array(rates) < 0.3
    rate = np.array(rates)[kept]
    return float(auc(rate / rate.max(), np.array(overlaps)[kept]))
