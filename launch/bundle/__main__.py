"""Fill, seal, check and install a bundle: a folder from which cotjax is installed without an index.

    wheels/         one wheel of each package
    base/, games/   models and games, where asked for
    manifest.json   Python, platform, commit and packages; size and SHA-256 of each file

launch/bundle.sh and launch/setup.sh run this folder before anything is installed, so it needs
nothing but Python and, to fill and to install, its pip. Errors are one line, with exit code 2.
"""

import argparse
from pathlib import Path

from files import check, join, opened
from fill import fetch, seal
from install import install


def main() -> None:
    parser = argparse.ArgumentParser(description="Called by launch/bundle.sh and launch/setup.sh.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("fetch", "seal", "join", "check", "install"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        if name in ("fetch", "install"):
            command.add_argument("--extra", default="")
        if name == "fetch":
            command.add_argument("--no-jax", action="store_true")
        if name == "seal":
            command.add_argument("--part-size", type=int, help="of a part, in MB of 10^6 bytes")
        if name == "install":
            command.add_argument("--python", required=True)
    given = parser.parse_args()
    if given.command == "fetch":
        fetch(given.folder, given.extra, not given.no_jax)
    elif given.command == "seal":
        seal(given.folder, given.part_size and given.part_size * 1_000_000)
    elif given.command == "join":
        join(given.folder)
    elif given.command == "check":
        check(given.folder, opened(given.folder)["files"])
        print(f"{given.folder} is whole")
    else:
        install(given.folder, given.extra, given.python)


if __name__ == "__main__":
    main()
