# shellcheck shell=bash
# Sourced by tpu_vm.sh, gke_xpk.sh, slurm.sbatch and gpu.sh: checks, printing, running. It also
# works in macOS' bash 3.2.

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

# parse VALUES SWITCHES WORD...: sets the variable of each flag in VALUES to the next word, of
# each flag in SWITCHES to yes, `command` to the word that is not a flag, and `arguments` to the
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
                        printf -v "$flag" '%s' "$value"
                        shift
                        ;;
                    *) case $switches in
                        *" $flag "*) printf -v "$flag" yes ;;
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
