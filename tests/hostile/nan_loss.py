"""Its loss leaves the finite numbers in its third step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bench import Engine, MethodCard, hookimpl


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


class Spread(nn.Module):
    """A backbone whose features are drawn to unit variance: something to train, quickly."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        loss = (self.backbone(images).var(0) - 1).square().mean()
        return loss if self.engine.progress < 0.4 else loss * float("nan")


@hookimpl
def describe() -> MethodCard:
    return MethodCard(
        title="NaN loss", paper="https://example.org", family="other", defaults=Config()
    )


@hookimpl
def pretrain(backbone: nn.Module, engine: Engine) -> nn.Module:
    model = Spread(backbone)
    model.engine = engine
    return engine.fit(model, lr=0.05)
