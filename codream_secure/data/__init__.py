"""Datasets as numpy arrays, and how their examples are dealt to clients.

Torch-free: the loaders that need torchvision or scikit-learn import them when called.
"""

from codream_secure.data.datasets import Dataset, load_dataset
from codream_secure.data.names import DATASET_NAMES
from codream_secure.data.partition import label_histogram, partition, split_validation
from codream_secure.data.spec import InputSpec, Scaling

__all__ = [
    "DATASET_NAMES",
    "Dataset",
    "InputSpec",
    "Scaling",
    "label_histogram",
    "load_dataset",
    "partition",
    "split_validation",
]
