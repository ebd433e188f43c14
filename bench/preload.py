"""What the fork server imports once, so that each process forked from it starts in milliseconds.

Imports only: one torch operation here would leave threads that a forked child waits for forever.
"""

from __future__ import annotations

import safetensors.torch  # noqa: F401
import timm  # noqa: F401
import torch
import torch.distributed  # noqa: F401
import torchvision  # noqa: F401
from torchvision.transforms.v2 import functional  # noqa: F401

import bench.augment
import bench.data
import bench.engine
import bench.evaluations
import bench.features
import bench.health
import bench.integrity
import bench.results
import bench.worker  # noqa: F401
