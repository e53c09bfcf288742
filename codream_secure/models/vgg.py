"""VGG networks for small images (Simonyan and Zisserman 2015), with norms and one linear layer."""

from typing import Final

from torch import Tensor, nn

from codream_secure.data.spec import InputSpec
from codream_secure.models.layers import Norm, PadTo, norm_layer

_STAGES: Final = 5
# Every stage ends with a halving; fewer pixels than this would leave none.
MIN_SIZE: Final = 1 << _STAGES
_DOUBLINGS: Final = 3


class VGG(nn.Module):
    """Five stages of 3 x 3 convolutions, a mean over the image, and a linear layer.

    The stages have `width`, 2, 4, 8 and 8 `width` channels; each ends with max pooling by 2.
    Convolutions have biases, although a norm follows: so do those whose parameters everybody
    counts. Images of less than 32 x 32 are padded.

    Args:
        spec: Shape of an image, and the number of classes.
        width: Channels of the first stage.
        norm: Kind of the norms.
        convolutions: How many in each of the five stages.
    """

    def __init__(
        self, spec: InputSpec, width: int, norm: Norm, *, convolutions: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.pad = PadTo(MIN_SIZE)
        layers: list[nn.Module] = []
        channels = spec.channels
        for stage, count in enumerate(convolutions):
            outputs = width << min(stage, _DOUBLINGS)
            for _ in range(count):
                convolution = nn.Conv2d(channels, outputs, 3, padding=1)
                layers += [convolution, norm_layer(norm, outputs), nn.ReLU()]
                channels = outputs
            layers.append(nn.MaxPool2d(2))
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(channels, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scaled images, N x C x H x W, to logits, N x classes."""
        features: Tensor = self.stages(self.pad(images))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits
