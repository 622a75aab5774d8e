# shellcheck shell=bash
# Sourced by the other scripts: checks, printing, running. It also works in macOS' bash 3.2.

dry_run=${dry_run:-no}

die() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# need_tool NAME WHERE_TO_GET_IT
need_tool() {
    command -v "$1" >/dev/null || die "$1 is not here; $2"
}

# need_value FLAG VALUE WHAT
need_value() {
    [ -n "$2" ] || die "$1 is missing: $3"
}

# value_of FLAG VALUE...: the value that follows a flag on the command line.
value_of() {
    [ $# -ge 2 ] || die "$1 needs a value"
    printf '%s' "$2"
}

# parse VALUES SWITCHES WORD...: sets the variable of each flag in VALUES to the next word (of
# --part-size: part_size), of each flag in SWITCHES to yes, `command` to the word that is not a flag, and `arguments` to the
# words after --. It handles --dry-run, and --help, for which it calls `usage`.
parse() {
    local values=" $1 " switches=" $2 " flag value
    shift 2
    while [ $# -gt 0 ]; do
        flag=${1#--}
        case $1 in
            --dry-run) dry_run=yes ;;
            --help | -h) usage && exit 0 ;;
            --)
                shift
                # shellcheck disable=SC2034  # read by the script that sources this
                arguments=("$@")
                break
                ;;
            -*)
                case $values in
                    *" $flag "*)
                        value=$(value_of "$@")
                        printf -v "${flag//-/_}" '%s' "$value"
                        shift
                        ;;
                    *) case $switches in
                        *" $flag "*) printf -v "${flag//-/_}" yes ;;
                        *) die "unknown flag $1 (see --help)" ;;
                    esac ;;
                esac
                ;;
            *)
                [ -z "$command" ] ||
                    die "one command at a time: $command, $1? (arguments of cotjax follow --)"
                command=$1
                ;;
        esac
        shift
    done
}

# absolute PATH FOLDER: prints a path that is relative to a folder as an absolute one.
absolute() {
    case $1 in
        /*) printf '%s' "${1%/}" ;;
        *) set -- "${1#./}" "$2" && printf '%s' "$2/${1%/}" ;;
    esac
}

# need_venv PYTHON: cotjax is installed into an environment of a recent Python.
need_venv() {
    local version
    version=$("$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) ||
        die "$1 does not run; set PYTHON=/path/to/python3.11"
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "cotjax needs Python 3.11 or newer, not $version: set PYTHON=/path/to/python3.11"
    "$1" -c 'import venv, ensurepip' 2>/dev/null ||
        die "cotjax needs Python's venv module (Debian: apt-get install python3-venv)"
}

# need_compiler: some packages are only to be had as source.
need_compiler() {
    local tool
    for tool in cmake make g++; do
        need_tool "$tool" "engines of alfworld are built from source (Debian: apt-get install \
cmake make g++)"
    done
}

# quoted WORD...: prints one line that a shell reads back as the same words.
quoted() {
    local line=
    for word in "$@"; do
        line+="${line:+ }$(printf '%q' "$word")"
    done
    printf '%s' "$line"
}

# run WORD...: runs a command, or with --dry-run prints it. Every command with an effect is run by
# it.
run() {
    if [ "$dry_run" = yes ]; then
        printf '%s\n' "$(quoted "$@")"
    else
        "$@"
    fi
}

# cuda_extra: prints the extra of pyproject.toml for this machine's NVIDIA driver.
cuda_extra() {
    need_tool nvidia-smi "this machine has no NVIDIA driver"
    local version
    version=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1) ||
        die "nvidia-smi finds no GPU"
    case ${version%%.*} in
        '' | *[!0-9]*) die "nvidia-smi prints no driver version: '$version'" ;;
    esac
    if [ "${version%%.*}" -ge 580 ]; then
        echo cuda13
    elif [ "${version%%.*}" -ge 525 ]; then
        echo cuda12
    else
        die "the NVIDIA driver is $version; CUDA 12 needs 525 or newer, CUDA 13 needs 580"
    fi
}

# need_bundle FOLDER: it is a bundle, or none is named.
need_bundle() {
    [ -z "$1" ] || [ -e "$1/manifest.json" ] || [ -e "$1/parts.json" ] ||
        die "--bundle: $1 has no manifest.json and no parts.json; make it with launch/bundle.sh"
}

# setup EXTRA [BUNDLE]: sources setup.sh, or with --dry-run prints that. It sets `venv`.
setup() {
    if [ "$dry_run" = yes ]; then
        echo ". launch/setup.sh $(quoted "$1" ${2:+"$2"})"
        venv=${VENV:-.venv}
    else
        # shellcheck source=launch/setup.sh
        . launch/setup.sh "$1" "${2:-}"
    fi
}
