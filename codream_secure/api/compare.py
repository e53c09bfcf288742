"""`compare` and `report`: several methods at equal cost, and the page about runs."""

import dataclasses
import shlex
import tempfile
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

from codream_secure.api.data import Data
from codream_secure.api.simulate import data_options, steps
from codream_secure.baselines.base import BaselineSettings
from codream_secure.compare.comparison import Comparison
from codream_secure.compare.plan import Plan, as_match
from codream_secure.errors import UserError
from codream_secure.models.custom import Source, given_models
from codream_secure.report.page import PAGE, write_page
from codream_secure.report.page_answer import Headline
from codream_secure.runs.comparison_folder import is_comparison, is_run, rerun
from codream_secure.runs.comparison_format import ComparisonResult
from codream_secure.storage.folder_lock import claimed
