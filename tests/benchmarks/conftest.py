"""The benchmarks import one another by bare name, as scripts of one folder do."""

import sys

from tests.conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
