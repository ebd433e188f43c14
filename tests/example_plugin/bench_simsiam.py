"""SimSiam: two views of an image predict each other, with neither negatives nor a second encoder.

Paper:   Chen & He, CVPR 2021. https://arxiv.org/abs/2011.10566
Source:  https://github.com/facebookresearch/simsiam
Family:  other
Departs: the predictor's learning rate follows the schedule (the source keeps it constant)
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from bench import MethodCard, augment, hookimpl
from bench.layers import group_batch_norm, projection_mlp


@dataclass(frozen=True)
class Config:
    dim: int = 2048  # Section 3
    hidden: int = 512  # Section 3: the predictor is a bottleneck
    base_lr: float = 0.05  # Section 3
    weight_decay: float = 1e-4  # Section 3
    min_crop: float = 0.2  # source, main_simsiam.py


class SimSiam(nn.Module):
    def __init__(self, backbone: nn.Module, dim: int, hidden: int) -> None:
        super().__init__()
        self.backbone = backbone
        head = projection_mlp(backbone.num_features, dim, dim, depth=3, norm=True)
        self.projector = nn.Sequential(head, nn.BatchNorm1d(dim, affine=False))
        self.predictor = projection_mlp(dim, hidden, dim, norm=True)

    def forward(self, view0: Tensor, view1: Tensor) -> Tensor:
        """Return the symmetrised negative cosine similarity (Eq. 4): no gradient through z."""
        z0, z1 = self.projector(self.backbone(view0)), self.projector(self.backbone(view1))
        p0, p1 = self.predictor(z0), self.predictor(z1)  # (B, D) each
        similarity = cosine_similarity(p0, z1.detach()) + cosine_similarity(p1, z0.detach())
        return -similarity.mean() / 2


@hookimpl
def describe() -> MethodCard:
    small = Config(dim=256, hidden=64, base_lr=0.2, min_crop=0.4)
    url, departs = "https://arxiv.org/abs/2011.10566", "the predictor's rate follows the schedule"
    return MethodCard("SimSiam", url, "other", Config(), recipes={"small": small}, departs=departs)


@hookimpl
def pretrain(backbone, config, engine):
    model = group_batch_norm(SimSiam(backbone, config.dim, config.hidden))
    crop = augment.random_resized_crop(scale=(config.min_crop, 1.0))
    color = (augment.color_jitter(0.4, 0.4, 0.4, 0.1), augment.grayscale())
    view = augment.compose(crop, *color, augment.gaussian_blur(), augment.horizontal_flip())
    recipe = {"base_lr": config.base_lr, "weight_decay": config.weight_decay}
    return engine.fit(model, views=(view, view), optimizer="sgd", **recipe)
