"""The former name of `protocols.audit`; kept for code that imports it.

Both names give the same module objects. `protocols.testing.audit` is `protocols.audit.run`. Modules
that need Hypothesis are there only where it is installed.
"""

import contextlib
import sys
from importlib import import_module
from pkgutil import iter_modules

from protocols import audit as _audit
from protocols.audit import *  # noqa: F403 - the same public names
from protocols.audit import __all__ as __all__

for _name in [module.name for module in iter_modules(_audit.__path__)]:
    with contextlib.suppress(ModuleNotFoundError):
        _module = import_module(f"protocols.audit.{_name}")
        _alias = "audit" if _name == "run" else _name
        sys.modules[f"{__name__}.{_alias}"] = globals()[_alias] = _module
