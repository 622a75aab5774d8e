#!/usr/bin/env bash
# Runs cotjax on a Cloud TPU slice, on all of its hosts. See docs/launch.md.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

usage() {
    cat <<'USAGE'
launch/tpu_vm.sh [flags] COMMAND

  create              request the slice and wait for it. From then on it costs money
  install             copy the committed checkout to every host and install cotjax there
  run -- ARGUMENTS    start `cotjax ARGUMENTS` on every host; it runs on when this machine sleeps
  resume -- ARGUMENTS after preemption: delete the slice, then create, install and run again
  status              the slice's state, and the last line of every host's log
  logs                follow process 0's log
  stop                end the run, which saves first. The slice remains and costs money
  delete              delete the slice

  --name NAME         of the slice (required)
  --type TYPE         accelerator type, such as v6e-16 (create, resume)
  --project PROJECT   default: $CLOUDSDK_CORE_PROJECT
  --zone ZONE         default: $CLOUDSDK_COMPUTE_ZONE
  --slices N          several slices as one run (default 1)
  --spot              cheaper, but may be reclaimed at any time
  --runtime VERSION   the hosts' image (default: the one for TYPE)
  --nfs HOST:/SHARE   mount this NFS export (Filestore) at /mnt/cotjax on every host (install,
                      resume)
  --keys FILE         file of NAME=value lines for the run's environment; only its path is printed
  --dry-run           print the commands, do nothing
USAGE
}

name='' type='' slices=1 spot=no runtime='' nfs='' keys='' command=''
project=${CLOUDSDK_CORE_PROJECT:-} zone=${CLOUDSDK_COMPUTE_ZONE:-}
arguments=()
parse 'name type project zone slices runtime nfs keys' 'spot' "$@"

case $command in
    create | install | run | resume | status | logs | stop | delete) ;;
    '') usage >&2 && exit 2 ;;
    *) die "unknown command $command (see --help)" ;;
esac
need_tool gcloud "install the Google Cloud CLI: https://cloud.google.com/sdk/docs/install"
need_value --name "$name" "the name of the slice"
need_value --project "$project" "the Google Cloud project, or set CLOUDSDK_CORE_PROJECT"
need_value --zone "$zone" "such as us-east5-b, or set CLOUDSDK_COMPUTE_ZONE"
case $slices in
    '' | 0 | *[!0-9]*) die "--slices is '$slices'; give 1 or more" ;;
esac
case $command in
    create | resume) need_value --type "$type" "the accelerator type, such as v6e-16" ;;
esac
case $command in
    run | resume)
        [ ${#arguments[@]} -gt 0 ] ||
            die "nothing to run: end with -- study --config FILE --out /mnt/cotjax/NAME"
        ;;
esac
case $command in
    install | resume) need_tool git "the checkout is copied by git archive" ;;
esac
[ -z "$keys" ] || [ -r "$keys" ] || die "--keys: $keys cannot be read"
if [ -z "$runtime" ] && [ -n "$type" ]; then
    case $type in
        v4-*) runtime=tpu-ubuntu2204-base ;;
        v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
        v5p-*) runtime=v2-alpha-tpuv5 ;;
        v6e-*) runtime=v2-alpha-tpuv6e ;;
        *) die "no image is known for $type; name one with --runtime" ;;
    esac
fi

place=(--project="$project" --zone="$zone")
nodes=("$name")
if [ "$slices" -gt 1 ]; then
    nodes=()
    for ((slice = 0; slice < slices; slice++)); do
        nodes+=("$name-$slice")
    done
fi

on_hosts() { # WORKER COMMAND LINE: on a worker ("all": every one) of every slice
    local node
    for node in "${nodes[@]}"; do
        run gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" --worker="$1" --command="$2"
    done
}

to_hosts() { # FILE NAME THERE
    local node
    for node in "${nodes[@]}"; do
        run gcloud compute tpus tpu-vm scp "$1" "$node:$2" "${place[@]}" --worker=all
    done
}

create() {
    local which=(--node-id="$name") kind=()
    [ "$slices" -eq 1 ] || which=(--node-count="$slices" --node-prefix="$name")
    [ "$spot" = no ] || kind=(--spot)
    run gcloud compute tpus queued-resources create "$name" "${place[@]}" "${which[@]}" \
        --accelerator-type="$type" --runtime-version="$runtime" ${kind[@]+"${kind[@]}"}
    await
}

await() {
    local state before=''
    local describe=(gcloud compute tpus queued-resources describe "$name" "${place[@]}")
    describe+=('--format=value(state.state)')
    if [ "$dry_run" = yes ]; then
        run "${describe[@]}"
        return
    fi
    while true; do
        state=$("${describe[@]}")
        [ "$state" = "$before" ] || echo "$name: $state"
        before=$state
        case $state in
            ACTIVE) return ;;
            FAILED | SUSPENDED | SUSPENDING)
                die "$name is $state; see gcloud compute tpus queued-resources describe, then delete"
                ;;
        esac
        sleep 30
    done
}

install() {
    local archive="${TMPDIR:-/tmp}/cotjax-$name.tar.gz" root
    root=$(cd "$(dirname "$0")/.." && pwd)
    if ! git -C "$root" diff --quiet HEAD; then
        echo "$(basename "$0"): uncommitted changes are not copied" >&2
    fi
    run git -C "$root" archive --format=tar.gz --prefix=cotjax/ --output="$archive" HEAD
    to_hosts "$archive" cotjax.tar.gz
    run rm "$archive"
    on_hosts all "tar -xzf cotjax.tar.gz && cotjax/launch/host.sh $(quoted tpu ${nfs:+"$nfs"})"
    if [ -n "$keys" ]; then
        to_hosts "$keys" .cotjax_keys
        on_hosts all 'chmod 600 .cotjax_keys'
    fi
}

start() {
    local line
    line="exec .venv/bin/cotjax $(quoted "${arguments[@]}")"
    [ -z "$keys" ] || line="set -a && . ~/.cotjax_keys && set +a && $line"
    # Detached, so that the run outlives the connection. Two runs on one host would compete for
    # its chips.
    on_hosts all "if [ -e cotjax.pid ] && kill -0 \$(cat cotjax.pid) 2>/dev/null
then echo 'cotjax runs here already'; exit 1; fi
cd cotjax && { setsid nohup bash -c $(quoted "$line") >~/cotjax.log 2>&1 </dev/null &
echo \$! >~/cotjax.pid; }"
}

case $command in
    create) create ;;
    install) install ;;
    run) start ;;
    resume)
        run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
        create
        install
        start
        ;;
    status)
        run gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
            '--format=value(state.state)'
        on_hosts all 'hostname; tail -n 1 cotjax.log'
        ;;
    logs)
        nodes=("${nodes[0]}")
        on_hosts 0 'tail -n 100 -f cotjax.log'
        ;;
    stop) on_hosts all "kill -TERM \$(cat cotjax.pid)" ;;
    delete) run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet ;;
esac
