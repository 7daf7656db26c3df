"""AVX-512 kernels where no processor has it: the native suites run on a build that simulates the instructions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITES = ("tests/kernels", "tests/models/test_packed.py", "tests/planner/test_panels.py")
TOOLS = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
HEADERS = Path("/usr/include/simde/x86/avx512.h")

RUN = """
import importlib.util, sys
import octavo, pytest
spec = importlib.util.spec_from_file_location("octavo._cpu", sys.argv[1])
octavo._cpu = sys.modules["octavo._cpu"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(octavo._cpu)
assert {"avx512", "avx512_bf16"} <= set(octavo._cpu.instruction_sets())
sys.exit(pytest.main(["-k", "avx512", "-m", "not slow", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not HEADERS.exists(), reason=f"{HEADERS} is missing: apt install libsimde-dev")
def test_native_suites_pass_on_simulated_avx512(tmp_path: Path) -> None:
    configure = ["cmake", "-S", ROOT, "-B", tmp_path, "-G", "Ninja", "-DOCTAVO_SIMDE=ON"]
    done = subprocess.run(
        [*configure, f"-DPython_EXECUTABLE={sys.executable}"], capture_output=True, text=True, env=TOOLS
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["cmake", "--build", tmp_path], capture_output=True, text=True, env=TOOLS)
    assert done.returncode == 0, done.stdout[-4000:]
    (module,) = tmp_path.glob("_cpu*.so")
    done = subprocess.run(
        [sys.executable, "-c", RUN, module, *SUITES], capture_output=True, text=True, cwd=ROOT
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]
