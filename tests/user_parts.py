"""Parts of a user, outside the package: the text of a module, for tests that write it into a folder of their own."""

MINE = '''\
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    """Two convolutions. `heads` gives logits at full and at half resolution in training."""

    def __init__(self, in_channels, out_channels, width=4, heads=1):
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(in_channels, width, 3, padding=1), nn.InstanceNorm3d(width), nn.ReLU())
        self.heads = nn.ModuleList(nn.Conv3d(width, out_channels, 1, stride=2**level) for level in range(heads))

    def forward(self, volumes):
        maps = self.body(volumes)
        logits = [head(maps) for head in self.heads]
        return logits if self.training and len(logits) > 1 else logits[0]


def smoothed(logits, labels, smoothing=0.0):
    return F.cross_entropy(logits, labels[:, 0], label_smoothing=smoothing)


class Signs(torch.optim.Optimizer):
    """Sign descent with momentum."""

    def __init__(self, params, lr, weight_decay=0.0, momentum=0.9):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                mean = state.setdefault("mean", torch.zeros_like(weight))
                mean.mul_(group["momentum"]).add_(weight.grad, alpha=1 - group["momentum"])
                weight.sub_(group["lr"] * (mean.sign() + group["weight_decay"] * weight))


def triangle(step, steps, lr, low=0.0):
    return low + (lr - low) * (1 - abs(2 * step / steps - 1))


def volume_error(prediction, label, num_classes, spacing_mm, percent=False):
    """Relative error of the volume of each foreground class."""
    errors = []
    for value in range(1, num_classes):
        true = int((label == value).sum())
        found = int((prediction == value).sum())
        errors.append((100 if percent else 1) * abs(found - true) / true if true else float("nan"))
    return errors
'''
