"""The published SK-RD4AD loop, restated plainly: what it computes and how often, in our own words.

The networks' arithmetic is ours, bottleneck and student shared weight by weight; what differs is what is done around
them. The published loop trains and scores by batches of decoded images, runs the whole teacher, never tells autograd
that it is frozen, and upsamples features to compare them. Left out: the loader's processes (images are decoded in
this one), the 1x1 convolution it never calls, the ReLU after a skip, which changes nothing, and rounding to 3 decimals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage import measure
from sklearn.metrics import auc, roc_auc_score
from torch import Tensor, nn
from torchvision import transforms

from dataset import Sample

RATE = 0.005  # weight of the consistency loss
TEACHERS = {
    "wide_res50": torchvision.models.wide_resnet50_2,
    "res50": torchvision.models.resnet50,
    "res34": torchvision.models.resnet34,
    "res18": torchvision.models.resnet18,
}


class Plain(nn.Module):
    """images (B, 3, S, S), normalized -> the teacher's and the student's levels, finest first, all in the graph.

    `teacher` is torchvision's whole network; bottleneck and student are ours as they are built, torch's own layers.
    """

    def __init__(self, teacher: nn.Module, bottleneck: nn.Module, student: nn.Module) -> None:
        super().__init__()
        self.teacher: Any = teacher
        self.bottleneck, self.student = bottleneck, student
        self.to(memory_format=torch.contiguous_format)
        self.requires_grad_(True)

    def train(self, mode: bool = True) -> Plain:
        """The teacher stays in evaluation mode, and that is all that is done to keep it as it is."""
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
        levels = levels[:3]  # the fourth stage was for nothing
        return levels, self.student(self.bottleneck(levels), levels)


def random_teacher(net: str, seed: int = 0) -> nn.Module:
    """torchvision's network with random weights, batch norms set so that features keep their scale at all depths."""
    torch.manual_seed(seed)
    teacher = TEACHERS[net](weights=None)
    for part in teacher.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        teacher.train()(torch.randn(4, 3, 64, 64))
    return teacher.eval()


def build_optimizer(plain: Plain) -> torch.optim.Optimizer:
    """Adam over student and bottleneck, as torch chooses to run it."""
    trained = [*plain.student.parameters(), *plain.bottleneck.parameters()]
    return torch.optim.Adam(trained, lr=0.005, betas=(0.5, 0.999))


def decoded_batches(samples: Sequence[Sample], order: Sequence[int], size: int, batch_size: int) -> Iterator[Tensor]:
    """Images in this order, decoded, resized and normalized when their turn comes, every time anew."""
    transform = transforms.Compose(
        [
            transforms.Resize((size, size)),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    for start in range(0, len(order), batch_size):
        chosen = (samples[index] for index in order[start : start + batch_size])
        yield torch.stack([transform(Image.open(sample.image).convert("RGB")) for sample in chosen])


def losses_of(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The flattened cosine loss and the consistency loss, always both."""
    distilled = torch.zeros((), device=teacher[0].device)
    for t, s in zip(teacher, student, strict=True):
        distilled = distilled + (1 - F.cosine_similarity(t.flatten(1), s.flatten(1))).mean()
    consistency = torch.zeros((), device=teacher[0].device)
    for fine, coarse in ((1, 2), (0, 1)):
        size = teacher[fine].shape[-2:]
        upsampled_t = F.interpolate(teacher[coarse], size, mode="bilinear", align_corners=True)
        upsampled_s = F.interpolate(student[coarse], size, mode="bilinear", align_corners=True)
        difference = F.mse_loss(upsampled_t, upsampled_s) - F.mse_loss(teacher[fine], student[fine])
        consistency = consistency + difference.abs()
    return distilled, consistency


def train_step(plain: Plain, optimizer: torch.optim.Optimizer, images: Tensor) -> float:
    """One step on a batch; its loss."""
    teacher, student = plain(images)
    # The published step calls its loss function twice, once for each of the two terms that it returns: four terms are
    # computed and two are used. The other two are never sent backwards.
    loss = losses_of(teacher, student)[0] + RATE * losses_of(teacher, student)[1]
    optimizer.zero_grad()  # the student's and bottleneck's: what reaches the teacher adds up, unused
    loss.backward()
    optimizer.step()
    return loss.item()


def train(
    plain: Plain,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    order: Sequence[int],
    size: int,
    batch_size: int,
) -> list[float]:
    """The losses of a pass over the samples in this order, step by step."""
    device = next(plain.parameters()).device
    plain.train()
    batches = decoded_batches(samples, order, size, batch_size)
    return [train_step(plain, optimizer, images.to(device)) for images in batches]


def anomaly_map(teacher: Sequence[Tensor], student: Sequence[Tensor], size: int) -> np.ndarray:
    """The levels of one image -> (size, size): cosine distances, each upsampled, added and smoothed."""
    added = np.zeros((size, size))
    for t, s in zip(teacher, student, strict=True):
        distance = (1 - F.cosine_similarity(t, s))[:, None]
        added += F.interpolate(distance, size=size, mode="bilinear", align_corners=True)[0, 0].cpu().numpy()
    return gaussian_filter(added, sigma=4)


@torch.no_grad()
def predict(plain: nn.Module, image: Tensor) -> np.ndarray:
    """A batch of one image, normalized -> its map (S, S)."""
    teacher, student = plain(image)
    return anomaly_map(teacher, student, image.shape[-1])


def evaluate(plain: nn.Module, samples: Sequence[Sample], size: int, device: torch.device) -> dict[str, float]:
    """image_auroc, pixel_auroc and aupro_per_image of a test set, one image at a time."""
    plain.eval()
    labels: list[int] = []
    scores: list[float] = []
    pixel_labels: list[int] = []
    pixel_scores: list[float] = []
    areas: list[float] = []
    for sample, image in zip(samples, decoded_batches(samples, range(len(samples)), size, 1), strict=True):
        scored = predict(plain, image.to(device))
        mask = read_mask(sample, size)
        if mask.any():
            areas.append(aupro(mask[None], scored[None]))
        labels.append(int(mask.max()))
        scores.append(float(scored.max()))
        pixel_labels.extend(mask.astype(int).ravel())
        pixel_scores.extend(scored.ravel())
    return {
        "image_auroc": float(roc_auc_score(labels, scores)),
        "pixel_auroc": float(roc_auc_score(pixel_labels, pixel_scores)),
        "aupro_per_image": float(np.mean(areas)),
    }


def read_mask(sample: Sample, size: int) -> np.ndarray:
    """(size, size) bool: resized as an image, then cut at one half."""
    if sample.mask is None:
        return np.zeros((size, size), bool)
    transform = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor()])
    return transform(Image.open(sample.mask).convert("L"))[0].numpy() > 0.5


def aupro(masks: np.ndarray, maps: np.ndarray, steps: int = 200) -> float:
    """Masks (n, H, W) bool and maps of the same shape -> the published area under the per-region overlap.

    At each of `steps` thresholds all regions are searched anew, the masks, as 64-bit integers, are turned round anew,
    and what is found is written in two halves. Rates below 0.3 are divided by their largest. The published table of
    points, to which a row is appended a threshold, is a list here.
    """
    masks = masks.astype(int)
    if set(masks.flatten()) != {0, 1}:
        raise ValueError("masks hold 0 and 1, both")
    low, high = maps.min(), maps.max()
    overlaps, rates = [], []
    found = np.zeros_like(maps, dtype=bool)
    for threshold in np.arange(low, high, (high - low) / steps):
        found[maps <= threshold] = False
        found[maps > threshold] = True
        shares = []
        for mask, found_here in zip(masks, found, strict=True):
            for region in measure.regionprops(measure.label(mask)):
                rows, columns = region.coords[:, 0], region.coords[:, 1]
                shares.append(found_here[rows, columns].sum() / region.area)
        overlaps.append(np.mean(shares))
        outside = 1 - masks
        rates.append(np.logical_and(outside, found).sum() / outside.sum())
    kept = np.array(rates) < 0.3
    rate = np.array(rates)[kept]
    return float(auc(rate / rate.max(), np.array(overlaps)[kept]))
