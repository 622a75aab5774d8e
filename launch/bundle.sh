#!/usr/bin/env bash
# Makes a folder from which cotjax is installed on machines without internet. See docs/launch.md.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR
. launch/common.sh

usage() {
    cat <<'USAGE'
launch/bundle.sh [flags]          make the bundle; the same command resumes an interrupted one
launch/bundle.sh [flags] check    check every file of a bundle by its hash

  --out FOLDER        the bundle (required)
  --python VERSION    of the machines without internet, such as 3.12 (default: python3's)
  --extra EXTRA       cpu, cuda12, cuda13 or tpu, and more extras of pyproject.toml after commas
                      (default cpu)
  --no-jax            leave jax out: the machines have their own
  --base MODEL        add a model: a name that `cotjax base` knows, or a Hugging Face folder
  --games GAMES       add games: a folder of them, or how many of each task type in each split
  --part-size MB      turn the bundle into parts of at most MB megabytes
  --dry-run           print the commands, do nothing
USAGE
}

out='' python='' extra=cpu no_jax='' base='' games='' part_size='' command=''
arguments=()
parse 'out python extra base games part-size' 'no-jax' "$@"
[ ${#arguments[@]} -eq 0 ] || die "nothing is run, so nothing may follow --"
need_value --out "$out" "the folder of the bundle"
out=$(absolute "$out" "$here")

# has_version PYTHON VERSION: whether it runs, and is that version.
has_version() {
    [ "$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$2" ]
}

interpreter=${PYTHON:-python3}
if [ -n "$python" ] && ! has_version "$interpreter" "$python"; then
    interpreter=python$python
    # Wheels of what is only to be had as source are built by the Python that they are for.
    has_version "$interpreter" "$python" ||
        die "there is no Python $python here to build packages for it; install it (such as by \
\`uv python install $python\`) and set PYTHON=/path/to/python$python"
fi
need_venv "$interpreter"

case $command in
    '') ;;
    check)
        need_bundle "$out"
        run "$interpreter" launch/bundle check "$out"
        exit
        ;;
    *) die "unknown command $command (see --help)" ;;
esac
case ${part_size:-1} in
    0 | *[!0-9]*) die "--part-size is '$part_size'; give a number of megabytes, such as 60" ;;
esac
need_compiler
if [ -n "$base" ] && [ -d "$(absolute "$base" "$here")" ]; then
    base=$(absolute "$base" "$here")
fi
case $base in
    */*) [ -e "$base/config.json" ] || die "--base: $base is no folder of a Hugging Face model" ;;
esac
case $games in
    0) die "--games is 0; give how many of each task type in each split, or a folder" ;;
    *[!0-9]*)
        games=$(absolute "$games" "$here")
        [ -d "$games" ] || die "--games: there is no folder $games"
        ;;
esac

work=$out/.work
bundle() {
    run "$work/venv/bin/python" launch/bundle "$@"
}

# copy FOLDER TARGET: the target appears whole, and replaces what is there.
copy() {
    run mkdir -p "$(dirname "$2")"
    run rm -rf "$work/copy"
    run cp -RL "$1" "$work/copy"
    run rm -rf "$2"
    run mv "$work/copy" "$2"
}

run mkdir -p "$work"
[ -x "$work/venv/bin/pip" ] || run "$interpreter" -m venv "$work/venv"
# An old pip downloads every package once more to find out the versions.
run "$work/venv/bin/python" -m pip install --disable-pip-version-check --quiet --upgrade pip
bundle fetch "$out" --extra "$extra" ${no_jax:+--no-jax}

case $base in
    '') ;;
    */*) copy "$base" "$out/base/$(basename "$base")" ;;
    *)
        setup ""
        run "$venv/bin/cotjax" base "$base" --out "$out/base/$base"
        ;;
esac
case $games in
    '') ;;
    */*) copy "$games" "$out/games" ;;
    *)
        setup ""
        run "$venv/bin/cotjax" games make --per-type "$games" --out "$out/games"
        ;;
esac
bundle seal "$out" ${part_size:+--part-size "$part_size"}
run rm -r "$work"
