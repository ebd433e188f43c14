"""Returns its backbone inside another module, so that no key fits."""

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
        self.backbone = nn.ModuleDict({"module": backbone})  # as a data-parallel wrapper has it

    def forward(self, images: Tensor) -> Tensor:
        return (self.backbone["module"](images).var(0) - 1).square().mean()


@hookimpl
def describe() -> MethodCard:
    return MethodCard("Wrong prefix", "https://example.org", "other", Config())


@hookimpl
def pretrain(backbone: nn.Module, engine: Engine) -> nn.Module:
    return engine.fit(Spread(backbone), lr=0.05)
