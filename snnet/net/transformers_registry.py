"""Saved nets in transformers: its image-classification pipeline and AutoModelForImageClassification."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..errors import MissingExtra
from .stitchable_net import StitchableNet


def register_with_transformers() -> None:
    """Lets transformers load saved nets in this process:

        pipeline('image-classification', model=FOLDER, model_kwargs={'stitch': 7})
        AutoModelForImageClassification.from_pretrained(FOLDER, stitch=7)

    Without `stitch` the most accurate one runs, or the most expensive where none has been evaluated. Images are
    prepared as the net expects, by the image processor that transformers has for networks of timm.

    Raises:
        MissingExtra: transformers is not installed.
    """
    try:
        import transformers
        from transformers.modeling_outputs import ImageClassifierOutput
    except ImportError as error:
        raise MissingExtra('loading nets with transformers', ['transformers'], 'transformers', error) from error
    base: Any = transformers

    class SnnetConfig(base.PretrainedConfig):  # type: ignore[misc]  # transformers is not typed here
        model_type = 'snnet'

        def __init__(self, class_names: list[str] | None = None, several_labels: bool = False, **kwargs: Any) -> None:
            given: dict[str, Any] = {'id2label': dict(enumerate(class_names))} if class_names else {}
            if several_labels is True:
                given['problem_type'] = 'multi_label_classification'  # the pipeline then applies the sigmoid
            super().__init__(**given)

    class SnnetForImageClassification(base.PreTrainedModel):  # type: ignore[misc]
        config_class = SnnetConfig
        main_input_name = 'pixel_values'

        def __init__(self, config: Any, net: StitchableNet, stitch: int) -> None:
            super().__init__(config)
            self.net, self.stitch = net, stitch

        @classmethod
        def from_pretrained(cls, folder: str, *args: Any, stitch: int | None = None, **kwargs: Any) -> Any:
            net = StitchableNet.from_pretrained(folder, revision=kwargs.get('revision'), token=kwargs.get('token'))
            names = net.class_names or [f'LABEL_{i}' for i in range(net.num_classes)]
            config = SnnetConfig(list(names), net.several_labels)
            return cls(config, net, _best(net) if stitch is None else net.checked(stitch)).eval()

        def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
            logits = self.net(pixel_values, stitch=self.stitch)
            if labels is None:
                return ImageClassifierOutput(logits=logits)
            several = self.net.several_labels
            loss = _binary_loss(logits, labels) if several else F.cross_entropy(logits, labels)
            return ImageClassifierOutput(loss=loss, logits=logits)

    base.AutoConfig.register('snnet', SnnetConfig, exist_ok=True)
    base.AutoImageProcessor.register(SnnetConfig, base.TimmWrapperImageProcessor, exist_ok=True)
    base.AutoModelForImageClassification.register(SnnetConfig, SnnetForImageClassification, exist_ok=True)


def _binary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss for labels (N, classes) of 0 and 1."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def _best(net: StitchableNet) -> int:
    return net.choose(flops=sys.float_info.max).record.stitch
