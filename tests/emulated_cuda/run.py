"""Run a command under the emulated CUDA driver, building first whatever is missing.

python tests/emulated_cuda/run.py -- pytest tests/cuda -k ties
python tests/emulated_cuda/run.py --streams eager --architecture 89 -- python script.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # started as a script, this file's own folder would come first

from tests.emulated_cuda.build import CannotBuild, Installation, build, host_kernels  # noqa: E402

KERNELS = ROOT / "runtime" / "fewstep" / "runtime" / "kernels" / "kernels.cu"

# Each is the end of a variable's name in lower case; the README says what they do.
SETTINGS = (
    "architecture",
    "fail_after_launches",
    "fail_with",
    "integrated",
    "log",
    "memory_mb",
    "order",
    "report",
    "streams",
)
_PREFIX = "EMULATED_CUDA_"


def environment(installation: Installation, kernels: Path, /, **settings: object) -> dict[str, str]:
    """The variables of a process that is to run under the emulated driver.

    Args:
        installation: of :func:`build`.
        kernels: the host build of the kernels, of :func:`host_kernels`.
        settings: any of ``SETTINGS``. Those not given get the driver's default, even if they are
            set in this process.

    Raises:
        TypeError: a setting that does not exist.
    """
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise TypeError(f"no such setting: {', '.join(unknown)}; there are {', '.join(SETTINGS)}")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIX)}
    variables["LD_LIBRARY_PATH"] = _before(installation.driver, "LD_LIBRARY_PATH")
    variables["PYTHONPATH"] = _before(installation.pycuda, "PYTHONPATH")
    variables[f"{_PREFIX}KERNELS"] = str(kernels)
    for name, value in settings.items():
        text = str(int(value)) if isinstance(value, bool) else str(value)
        variables[_PREFIX + name.upper()] = text
    return variables


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, run the command, and return its exit status."""
    options = vars(_parser().parse_args(arguments))
    command, source = options.pop("command"), options.pop("kernels")
    settings = {name: value for name, value in options.items() if value is not None}
    try:
        variables = environment(build(), host_kernels(source), **settings)
    except CannotBuild as error:
        print(f"cannot build the emulated CUDA driver: {error}", file=sys.stderr)
        return 1
    # pytest and its like are those of the Python that runs this file.
    programs = str(Path(sys.executable).parent)
    variables["PATH"] = os.pathsep.join([programs, variables.get("PATH", os.defpath)])
    os.environ["PATH"] = variables["PATH"]
    return subprocess.run(command, env=variables).returncode


def _before(folder: Path, variable: str) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get(variable)]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Run a command under the emulated CUDA driver.",
        usage="%(prog)s [options] -- command ...",
        argument_default=None,
    )
    parser.add_argument("--kernels", type=Path, default=KERNELS, help="the .cu file to emulate")
    parser.add_argument("--architecture", type=int, help="compute capability, 87 for 8.7")
    parser.add_argument("--streams", choices=("lazy", "eager"), help="when work runs")
    parser.add_argument("--order", help="of threads and blocks: forward, reverse, shuffled[:seed]")
    parser.add_argument("--integrated", action="store_true", default=None, help="as on a Jetson")
    parser.add_argument("--memory-mb", type=int, help="device memory")
    parser.add_argument("--fail-after-launches", type=int, help="then lose the context")
    parser.add_argument("--fail-with", type=int, help="and this error, by number")
    parser.add_argument("--report", type=Path, help="file for what was left and done")
    parser.add_argument("--log", action="store_true", default=None, help="print every call")
    parser.add_argument("command", nargs="+")
    return parser


if __name__ == "__main__":
    sys.exit(main())
