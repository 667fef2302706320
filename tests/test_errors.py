"""Optional packages: what is said where one is missing or broken."""

import sys

import pytest

from mlpkit.errors import MissingExtraError, import_extra


@pytest.mark.parametrize(
    ("module", "package"),
    [("matplotlib", "matplotlib"), ("skimage", "scikit-image"), ("PIL.Image", "pillow"), ("PIL", "pillow")],
)
def test_a_missing_package_is_called_by_the_name_it_is_installed_by(monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf'^{package} is not installed.*pip install "mlpkit\[some\]"'):
        import_extra(module, extra="some")


def test_a_package_that_is_not_there_at_all():
    with pytest.raises(MissingExtraError, match=r"^mlpkit_absent is not installed"):
        import_extra("mlpkit_absent.part", extra="some")


@pytest.mark.parametrize(
    "cause", ["raise ImportError('libodd.so: cannot open shared object file')", "import mlpkit_absent_libodd"]
)
def test_a_broken_package_is_not_called_missing(monkeypatch, tmp_path, cause):
    (tmp_path / "mlpkit_broken.py").write_text(cause)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"^mlpkit_broken cannot be imported \(.*libodd.*\).*mlpkit\[some\]"):
        import_extra("mlpkit_broken", extra="some")
