"""What is not collected: programs that made test data, and tests that need PyTorch where that is not installed.

PyTorch takes gigabytes; ``make test INSTALL_GROUPS="dev torch"``, which CI runs, installs it.
"""

from importlib.util import find_spec

collect_ignore = ["tests/data"]
if not find_spec("torch"):
    collect_ignore += [
        "mlpkit/interop/torch.py",
        "tests/interop/test_page.py",
        "tests/interop/test_safetensors.py",
        "tests/interop/test_torch.py",
    ]
