"""What pyproject.toml cannot say: with the library inside, a wheel is of one platform, for any Python 3."""

import pathlib
import shutil

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel

HERE = pathlib.Path(__file__).parent
LIBRARY = HERE / "src" / "matrixrtc" / "libmatrixrtc.so"
SBOM = HERE / "matrixrtc.cdx.json"


class Platform(Distribution):
    def has_ext_modules(self) -> bool:
        return LIBRARY.exists()


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]

    def write_wheelfile(self, wheelfile_base: str, *args: str) -> None:
        super().write_wheelfile(wheelfile_base, *args)
        if SBOM.exists():
            boms = pathlib.Path(wheelfile_base) / "sboms"
            boms.mkdir(exist_ok=True)
            shutil.copy(SBOM, boms)


setup(distclass=Platform, cmdclass={"bdist_wheel": Wheel})
