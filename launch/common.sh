# shellcheck shell=bash
# Sourced by tpu_vm.sh, gke_xpk.sh, slurm.sbatch and gpu.sh: what they check, print and run. It works in macOS' bash 3.2 too.

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

# quoted WORD...: as one line that a shell reads back as the same words.
quoted() {
    local line=
    for word in "$@"; do
        line+="${line:+ }$(printf '%q' "$word")"
    done
    printf '%s' "$line"
}

# run WORD...: runs a command; with --dry-run only prints it. Every command that changes something goes through here.
run() {
    if [ "$dry_run" = yes ]; then
        printf '%s\n' "$(quoted "$@")"
    else
        "$@"
    fi
}

# cuda_extra: the extra of pyproject.toml that goes with this machine's NVIDIA driver.
cuda_extra() {
    need_tool nvidia-smi "this machine has no NVIDIA driver"
    local version
    version=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1) || die "nvidia-smi finds no GPU"
    case ${version%%.*} in
        '' | *[!0-9]*) die "nvidia-smi tells no driver version: '$version'" ;;
    esac
    if [ "${version%%.*}" -ge 580 ]; then
        echo cuda13
    elif [ "${version%%.*}" -ge 525 ]; then
        echo cuda12
    else
        die "the NVIDIA driver is $version; CUDA 12 needs 525 or newer, CUDA 13 needs 580"
    fi
}
