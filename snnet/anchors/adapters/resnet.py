"""ResNet and its relatives: ResNeXt, SE-, ECA- and antialiased ResNets, ResNeSt, Res2Net, ..."""

from __future__ import annotations

from torch import Tensor

from ..anchor import Anchor
from ..network_line import Stage


class ResNetAnchor(Anchor):
    """timm's `ResNet`: the first block of a stage does the downsampling itself."""

    def stem(self, x: Tensor) -> Tensor:
        """First convolution(s) and max pooling."""
        model = self.model
        features: Tensor = model.maxpool(model.act1(model.bn1(model.conv1(x))))
        return features

    def stages(self) -> list[Stage]:
        """The four layers."""
        model = self.model
        return [Stage(list(layer)) for layer in (model.layer1, model.layer2, model.layer3, model.layer4)]

    def head(self, x: Tensor) -> Tensor:
        """Pooling, dropout and classifier."""
        return self.classify(x)

    def classify(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooling, dropout and classifier."""
        logits: Tensor = self.model.forward_head(x, pre_logits=pre_logits)
        return logits

    def stitch_stages(self) -> range:
        """The middle stages: the published space leaves out the first and the last."""
        return range(1, len(self.stages()) - 1)
