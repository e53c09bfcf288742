"""A client's side of the common model under differential privacy: noisy sums, and nothing else.

The client's own model is asked for nothing here. What leaves is the sum of its examples' clipped
vectors with its share of noise, under masks.
"""

import numpy as np
from numpy.typing import NDArray
from torch import nn

from codream_secure.aggregation.model_updates import model_digest, received
from codream_secure.aggregation.requests import GradientRequest, StatisticsRequest
from codream_secure.data.examples import Examples
from codream_secure.data.pixels import PixelScale
from codream_secure.data.spec import InputSpec
from codream_secure.errors import RequestRefused
from codream_secure.models.tensors import load, tensors_of
from codream_secure.privacy import class_means, noisy_descent
from codream_secure.privacy.class_means import ClassMeanTerms, class_sums
from codream_secure.privacy.integer_gradients import GradientGrid, gradient_sum
from codream_secure.privacy.noisy_sum import noisy_sum
from codream_secure.privacy.sum_plan import OwnSums

NoisyRequest = GradientRequest | StatisticsRequest


class OwnNoisySums:
    """A client's examples, its copy of the common model, and its account of the budget.

    Args:
        sums: the account; it decides which sums the client takes part in.
        model: the common model, as its public seed gives it; changed in place.
        local: the client's examples.
        scale: the public pixel scale.
        spec: shape of an image and number of classes.
        clip: of one example's gradient.

    Guarantee:
        Everything that it returns is a vector of clipped integers with this client's share of
        noise, charged to the account before it is computed. One example changes the vector by at
        most the sensitivity of its kind (`class_sums`, `gradient_sum`), for gradients up to what
        floating point does to the others in its chunk (`integer_gradients`); see `OwnSums.take`.
        Test:
        tests/codream_secure/federation/test_noisy_model.py.
    """

    def __init__(
        self,
        sums: OwnSums,
        model: nn.Module,
        local: Examples,
        scale: PixelScale,
        *,
        spec: InputSpec,
        clip: float,
    ) -> None:
        self.sums = sums
        self._model, self._local, self._scale, self._spec = model, local, scale, spec
        self._grid: GradientGrid = noisy_descent.gradient_grid(model, clip)
        self._common = tensors_of(model)

    def check(self, request: NoisyRequest) -> None:
        """Charge a sum, or refuse it; nothing here depends on private data.

        Raises:
            RequestRefused: the request is not for the common model that was sent, or `OwnSums`
                refuses its terms.
        """
        if isinstance(request, GradientRequest):
            if request.model != model_digest(self._common):
                raise RequestRefused("the request is for another model than the one that was sent")
            self.sums.take(noisy_descent.NAME, request.sum)
        else:
            if request.shape != ClassMeanTerms.of(self._spec, noisy_sum(request.sum)).shape:
                raise RequestRefused("class means of another shape")
            self.sums.take(class_means.NAME, request.sum)

    def vector(self, request: NoisyRequest) -> NDArray[np.int64]:
        """Return the sum over the client's examples, without noise: it must not leave so."""
        x, y = self._local.x, self._local.y
        if isinstance(request, GradientRequest):
            load(self._model, self._common)
            return gradient_sum(self._model, x, y, self._grid)
        terms = ClassMeanTerms.of(self._spec, noisy_sum(request.sum))
        images = self._scale.unscale(x).double().cpu().numpy()
        return class_sums(images, y.cpu().numpy(), terms)

    def codes(
        self, request: NoisyRequest, vector: NDArray[np.int64] | None, step: int, asked: bytes
    ) -> NDArray[np.uint32]:
        """Return the vector with this client's share of noise; None: of no examples.

        Args:
            request: that was checked.
            vector: from `vector`.
            step: of the protocol.
            asked: digest of the request.
        """
        found = np.zeros(request.sum.length, np.int64) if vector is None else vector
        return self.sums.codes(found, step, asked)

    def receive(self, message: bytes) -> None:
        """Replace the common model by the one that the server sends.

        Raises:
            RequestRefused: it is malformed, or not for such a model.
        """
        self._common = received(message, self._common)
