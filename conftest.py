"""What is not collected: tests of what PyTorch reads and writes, where it is not installed, as it takes gigabytes.

``make test INSTALL_GROUPS="dev torch"``, which CI runs, installs it.
"""

from importlib.util import find_spec

collect_ignore = (
    []
    if find_spec("torch")
    else [
        "mlpkit/interop/torch.py",
        "tests/interop/test_page.py",
        "tests/interop/test_safetensors.py",
        "tests/interop/test_torch.py",
    ]
)
