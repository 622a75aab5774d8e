#!/usr/bin/env bash
# Runs a study in parts, several at a time on one machine or GPU.
# Usage: launch/study_parts.sh CONFIG OUT [PROCESSES [SECONDS]] [-- ARGUMENTS OF cotjax]
# The same command resumes what was stopped after SECONDS (default 450), and writes the report when
# all parts are done. PYTHON=... runs it with that interpreter, as it is; without it launch/setup.sh
# makes one. On a GPU each process gets its share of the memory.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR
. launch/common.sh
case ${1:-} in
    '' | -*) sed -n '2,7s/^# //p' "$0" && exit 0 ;;
esac
config=$1 out=${2:-} processes=4 seconds=450
need_value OUT "$out" "the folder of the run"
shift 2
case ${1:-} in [1-9]*) processes=$1 && shift ;; esac
case ${1:-} in [1-9]*) seconds=$1 && shift ;; esac
[ "${1:-}" != -- ] || shift
if [ -z "${PYTHON:-}" ]; then
    extra=
    ! command -v nvidia-smi >/dev/null || extra=$(cuda_extra)
    . launch/setup.sh "$extra"
    PYTHON=$venv/bin/python
fi
export PYTHON config out
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-$(printf '0.%02d' $((90 / processes)))}
end=$(($(date +%s) + seconds))
mkdir -p "$out.parts"

# Environments are in the part's own process, of which there are enough.
part() {
    left=$((end - $(date +%s)))
    [ "$left" -gt 20 ] || return 0
    name=$(printf '%s' "$1" | tr '/,' '__' | cut -c1-100)
    [ ! -e "$out.parts/$name.done" ] || return 0
    arms=$1
    shift
    if timeout -s INT -k 20 "$left" "$PYTHON" -m cotjax.cli study --config "$config" --out "$out" \
        --arms "$arms" --config.workers=0 "$@" >>"$out.parts/$name.log" 2>&1; then
        touch "$out.parts/$name.done"
        echo "done: $arms"
    else
        echo "not done: $arms (exit code $?; see $out.parts/$name.log)"
    fi
}
export -f part
export end

"$PYTHON" -m cotjax.cli study --config "$config" --parts "$@" >"$out.parts/list"
xargs -P "$processes" -I{} bash -c 'part "$@"' part {} "$@" <"$out.parts/list"
all=$(wc -l <"$out.parts/list") finished=$(find "$out.parts" -name '*.done' | wc -l)
echo "$finished of $all parts are done"
[ "$finished" -ge "$all" ] || exit 75
"$PYTHON" -m cotjax.cli study --config "$config" --out "$out" "$@"
