"""The benchmark: its ceilings do not become faster when the service does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.client import ROOT

MODULES = """
import json, sys
import bench.ceilings
print(json.dumps([path for module in sys.modules.values() if (path := getattr(module, "__file__", None))]))
"""


def test_the_ceilings_have_no_code_of_the_service() -> None:
    command = [sys.executable, "-c", MODULES]
    loaded = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    ours = [Path(path).relative_to(ROOT).parts[0] for path in loaded if Path(path).is_relative_to(ROOT)]
    assert set(ours) - {".venv"} == {"bench"}
