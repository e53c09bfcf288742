"""The model architectures, by name."""

from codream_secure.models.build import build_model, parameter_count
from codream_secure.models.custom import is_custom
from codream_secure.models.layers import Norm
from codream_secure.models.names import MODEL_NAMES

__all__ = ["MODEL_NAMES", "Norm", "build_model", "is_custom", "parameter_count"]
