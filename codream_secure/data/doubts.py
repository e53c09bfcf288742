"""What looks like a slip in data that can be used: told to those who brought them alone."""

import numpy as np

from codream_secure.data.datasets import Dataset

_GREY_AND_ALPHA = 2
_NAMED = 10  # classes in a line


def doubts(dataset: Dataset) -> tuple[str, ...]:
    """Return what is suspicious about a dataset, a sentence each with what to do.

    Looked for are labels that count from 1, classes without a training example, and the two
    channels of grey pictures with transparency.
    """
    name, found = dataset.name, []
    classes = dataset.spec.classes
    trained = np.bincount(dataset.y_train, minlength=classes) > 0
    tested = np.bincount(dataset.y_test, minlength=classes) > 0
    missing = [int(label) for label in np.flatnonzero(~trained)]
    if missing == [0] and not tested[0]:
        found.append(
            f"{name}: no example has label 0; labels count from 0, so subtract 1 if yours count "
            "from 1"
        )
    elif missing:
        names = ", ".join(dataset.class_names[label] for label in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        found.append(
            f"{name}: no training example of class {names}{more}; nobody can learn it, so add "
            "some or leave the class out"
        )
    if dataset.spec.channels == _GREY_AND_ALPHA:
        found.append(
            f"{name}: pictures have 2 channels; if they are grey and alpha, drop the alpha channel"
        )
    return tuple(found)
