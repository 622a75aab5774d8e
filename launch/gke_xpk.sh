#!/usr/bin/env bash
# Runs cotjax on TPU slices of a GKE cluster, through xpk. See docs/launch.md.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

usage() {
    cat <<'USAGE'
launch/gke_xpk.sh [flags] COMMAND

  build               build the image from this checkout (launch/Dockerfile) and push it
  create -- ARGUMENTS start `cotjax ARGUMENTS` on every host; after preemption the cluster
                      restarts it
  resume -- ARGUMENTS delete the workload and create it again; it resumes from its last checkpoint
  status              the workload's state
  logs                follow process 0's log
  delete              delete the workload, but not the cluster and its nodes

  --name NAME         of the workload (required, except for build)
  --cluster CLUSTER   made by `xpk cluster create` (required, except for build)
  --image IMAGE       such as us-docker.pkg.dev/PROJECT/REPOSITORY/cotjax:1 (build, create, resume)
  --type TYPE         TPU type, such as v6e-16 (create, resume)
  --project PROJECT   default: $CLOUDSDK_CORE_PROJECT
  --zone ZONE         default: $CLOUDSDK_COMPUTE_ZONE
  --slices N          several slices as one run (default 1)
  --restarts N        how often the cluster may restart it (default 20)
  --keys FILE         file of NAME lines. xpk reads the values from your environment; only the
                      path of the file is printed
  --dry-run           print the commands, do nothing
USAGE
}

name='' cluster='' image='' type='' slices=1 restarts=20 keys='' command=''
project=${CLOUDSDK_CORE_PROJECT:-} zone=${CLOUDSDK_COMPUTE_ZONE:-}
arguments=()
parse 'name cluster image type project zone slices restarts keys' '' "$@"

case $command in
    build | create | resume | status | logs | delete) ;;
    '') usage >&2 && exit 2 ;;
    *) die "unknown command $command (see --help)" ;;
esac
case $command in
    build) need_tool docker "install Docker: https://docs.docker.com/engine/install" ;;
    logs) need_tool kubectl "install it: gcloud components install kubectl" ;;
    *) need_tool xpk "install it: pip install xpk" ;;
esac
case $command in
    build | create | resume) need_value --image "$image" "the name of the image in a registry" ;;
esac
if [ "$command" != build ]; then
    need_value --name "$name" "the name of the workload"
    need_value --cluster "$cluster" "the cluster that runs it"
    need_value --project "$project" "the Google Cloud project, or set CLOUDSDK_CORE_PROJECT"
    need_value --zone "$zone" "such as us-east5-b, or set CLOUDSDK_COMPUTE_ZONE"
fi
case $command in
    create | resume)
        need_value --type "$type" "the TPU type, such as v6e-16"
        [ ${#arguments[@]} -gt 0 ] ||
            die "nothing to run: end with -- study --config FILE --out /mnt/cotjax/NAME"
        ;;
esac
[ -z "$keys" ] || [ -r "$keys" ] || die "--keys: $keys cannot be read"

place=(--cluster="$cluster" --project="$project" --zone="$zone")

create() {
    # cotjax ends with 75 after it saved and wants a restart; xpk restarts what ends with 42 or a
    # signal.
    local line
    line="cotjax $(quoted "${arguments[@]}"); code=\$?; [ \$code -ne 75 ] || code=42; exit \$code"
    run xpk workload create --workload="$name" "${place[@]}" --tpu-type="$type" \
        --num-slices="$slices" --docker-image="$image" --max-restarts="$restarts" \
        --termination-grace-period-seconds=120 ${keys:+"--env-file=$keys"} --command="$line"
}

delete() {
    run xpk workload delete --workload="$name" "${place[@]}" --force
}

case $command in
    build)
        root=$(cd "$(dirname "$0")/.." && pwd)
        run docker build --file "$root/launch/Dockerfile" --tag "$image" "$root"
        run docker push "$image"
        ;;
    create) create ;;
    resume)
        delete
        create
        ;;
    status) run xpk workload list "${place[@]}" --filter-by-job="$name" ;;
    logs)
        first=jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
        run kubectl logs --follow --tail=100 \
            --selector="jobset.sigs.k8s.io/jobset-name=$name,$first"
        ;;
    delete) delete ;;
esac
