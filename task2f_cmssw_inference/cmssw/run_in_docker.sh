#!/usr/bin/env bash
# The task's inference with one command: container, project area, RecoE2E with our replacements laid
# over it, our own package, compilation, the task's cmsRun command, ours, and the timing tables.
# Only docker is needed on the host (and python3 for the tables).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

usage() {
  cat <<'TEXT'
usage: run_in_docker.sh [options] [MODEL [INPUT [RELEASE]]]

  MODEL    ONNX file        (the published one, in weights/)
  INPUT    EDM file         (SIM_DoubleGammaPt50_Pythia8_1000Ev.root)
  RELEASE  CMSSW release    (12_0_2; as 12_0_2 or CMSSW_12_0_2)

  --image NAME     another container image; its own project area or /cvmfs is used
  --arch NAME      SCRAM_ARCH (by release)
  --recoe2e COMMIT commit of RecoE2E (114dc93, which our replacements were written for)
  --host-cvmfs     mount the host's /cvmfs instead of the container's own
  --output FOLDER  where timing and scores of both jobs go (cmssw_RELEASE)
  --dry-run        print the commands, start nothing, need neither docker nor the files
  --help           this text
TEXT
}

refuse() {
  echo "error: $1" >&2
  exit 2
}

# 12_0_2 -> 120002, comparable as a number
number() {
  local major minor patch
  IFS=_ read -r major minor patch _ <<<"$1"
  echo $((10#$major * 10000 + 10#$minor * 100 + 10#$patch))
}

# The architecture of a release for CentOS 7, the system of the container.
default_arch() {
  local n
  n="$(number "$1")"
  if ((n < 120300)); then
    echo slc7_amd64_gcc900
  elif ((n < 130000)); then
    echo slc7_amd64_gcc10
  else
    echo slc7_amd64_gcc11
  fi
}

check_release() {
  local name="${1#CMSSW_}"
  [[ $name =~ ^[0-9]{1,2}_[0-9]{1,2}_[0-9]{1,2}(_[A-Za-z0-9_]+)?$ ]] ||
    refuse "RELEASE: expected a release like 12_0_2, found '$1'; correct it"
  # README.md, "Releases": what each older one lacks.
  (($(number "$name") >= 120002)) ||
    refuse "CMSSW_$name: expected 12_0_2 or newer, found a release that cannot read a file written by 12_0_2; run 12_0_2"
  release="$name"
}

check_files() {
  [[ -r $model ]] || refuse "$model: expected an ONNX model, found no file that can be read; run make task2f_cmssw_inference or name one"
  [[ -r $input ]] || refuse "$input: expected an EDM file, found no file that can be read; download it (link in the task) or name one"
}

check_docker() {
  command -v docker >/dev/null ||
    refuse "docker: expected it on the PATH, found none; install docker, or follow README.md on a machine with CMSSW"
  docker info >/dev/null 2>&1 ||
    refuse "docker: expected a running daemon, found none that answers 'docker info'; start it, or join the docker group"
}

# What runs inside the container. cmsrel and cmsenv are aliases of these scramv1 calls. No single
# quotes in it: it is printed between them.
container_script() {
  cat <<'SCRIPT'
set -euo pipefail
stop() { echo "error: $1" >&2; exit 3; }

for setup in /cvmfs/cms.cern.ch/cmsset_default.sh /opt/cms/cmsset_default.sh none; do
  [ ! -f "$setup" ] || break
done
[ "$setup" != none ] || stop "CMSSW: expected cmsset_default.sh in /cvmfs/cms.cern.ch or /opt/cms, found neither; is /cvmfs mounted?"
export SCRAM_ARCH="$ARCH"
set +eu  # the set-up scripts of CMSSW expect neither
. "$setup"
set -e
cd "$HOME"
[ -d "CMSSW_$RELEASE" ] || scramv1 project CMSSW "CMSSW_$RELEASE"
cd "CMSSW_$RELEASE/src"
environment="$(scramv1 runtime -sh)"
eval "$environment"
set -u
command -v cmsRun >/dev/null || stop "CMSSW_$RELEASE: expected cmsRun on the PATH, found none; try another --arch or --image"

[ -d RecoE2E ] || git clone https://github.com/rchudasa/RecoE2E.git
git -C RecoE2E checkout --quiet "$COMMIT" || stop "RecoE2E: expected its commit $COMMIT, which git cannot check out; try --recoe2e main, and see README.md"
echo "RecoE2E at $(git -C RecoE2E rev-parse HEAD)"
for file in EGTagger/plugins/EGTagger.cc EGTagger/plugins/BuildFile.xml EGTagger/python/EGInference_cfg.py; do
  [ -f "RecoE2E/$file" ] || stop "RecoE2E/$file: expected it in the clone, found none; the package has changed, see README.md"
done
cp -r /e2e/RecoE2E /e2e/E2EInference .
mkdir -p RecoE2E/tfModels E2EInference/ElectronPhoton/data
# Copied, not linked: edm::FileInPath refuses symbolic links.
cp "/e2e/model/$MODEL_NAME" RecoE2E/tfModels/sample.onnx
cp "/e2e/model/$MODEL_NAME" E2EInference/ElectronPhoton/data/sample.onnx
ln -sf "/e2e/input/$INPUT_NAME" SIM_DoubleGammaPt50_Pythia8_1000Ev.root
scram b -j8
scram b runtests

result=/tmp/e2e_result  # the user of the container may write here, whoever that is
mkdir -p "$result/RecoE2E" "$result/E2EInference"
cmsRun RecoE2E/EGTagger/python/EGInference_cfg.py inputFiles=file:SIM_DoubleGammaPt50_Pythia8_1000Ev.root maxEvents=-1 EGModelName=sample.onnx
mv resources.json output.root "$result/RecoE2E"
cmsRun E2EInference/ElectronPhoton/python/EGInference_cfg.py inputFiles=file:SIM_DoubleGammaPt50_Pythia8_1000Ev.root maxEvents=-1 EGModelName=sample.onnx
mv resources.json output.root "$result/E2EInference"
SCRIPT
}

do_it() { # print the command, or run it
  if [[ $dry_run == yes ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

absolute() {
  if [[ -d $(dirname "$1") ]]; then
    echo "$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"
  else
    echo "$1"
  fi
}

# ----------------------------------------------------------------------------------------------
image="" arch="" output="" commit=114dc93 dry_run=no host_cvmfs=no
positional=()
while (($#)); do
  case "$1" in
    --help) usage; exit 0 ;;
    --dry-run) dry_run=yes ;;
    --host-cvmfs) host_cvmfs=yes ;;
    --image | --arch | --output | --recoe2e)
      (($# > 1)) || refuse "$1: expected a value, found none; see --help"
      case "$1" in
        --image) image="$2" ;;
        --arch) arch="$2" ;;
        --output) output="$2" ;;
        --recoe2e) commit="$2" ;;
      esac
      shift
      ;;
    --*) refuse "$1: expected one of the options of --help, found another; correct it" ;;
    *) positional+=("$1") ;;
  esac
  shift
done
((${#positional[@]} <= 3)) || refuse "command line: expected at most MODEL INPUT RELEASE, found ${#positional[@]} arguments; see --help"

model="$(absolute "${positional[0]:-$here/../../weights/task2f_cmssw_inference/task2f_cmssw_inference.onnx}")"
input="$(absolute "${positional[1]:-SIM_DoubleGammaPt50_Pythia8_1000Ev.root}")"
check_release "${positional[2]:-12_0_2}"
if [[ $dry_run == no ]]; then
  check_files
  check_docker
fi

# Any release comes through cvmfs, which needs fuse in the container (Ubuntu's AppArmor profile of
# docker forbids the mount), or the host's mount; the standalone images (clelange/cmssw:TAG, 15 GB
# and more) carry one release each.
image="${image:-clelange/cc7-cmssw-cvmfs}"
if [[ $host_cvmfs == yes ]]; then
  access=(-v /cvmfs:/cvmfs --entrypoint "")
elif [[ $image == clelange/cmssw:* ]]; then
  access=()
else
  access=(--cap-add SYS_ADMIN --device /dev/fuse --security-opt apparmor=unconfined)
fi

output="${output:-cmssw_$release}"
container="e2e_${release}_$$"
run=(docker run --platform linux/amd64 --name "$container" ${access[@]+"${access[@]}"}
  -e "ARCH=${arch:-$(default_arch "$release")}" -e "RELEASE=$release" -e "COMMIT=$commit"
  -e "MODEL_NAME=$(basename "$model")" -e "INPUT_NAME=$(basename "$input")"
  -v "$here/RecoE2E:/e2e/RecoE2E:ro" -v "$here/E2EInference:/e2e/E2EInference:ro"
  -v "$(dirname "$model"):/e2e/model:ro" -v "$(dirname "$input"):/e2e/input:ro"
  "$image" /bin/bash -c)

# Copied out, not written to a mount: the user of the container has another number than yours.
copy=(docker cp "$container:/tmp/e2e_result/." "$output")
if [[ $dry_run == yes ]]; then
  printf '%q ' "${run[@]}"
  printf "'\n%s\n'\n" "$(container_script)"
  do_it "${copy[@]}"
else
  mkdir -p "$output"
  status=0
  "${run[@]}" "$(container_script)" || status=$?
  copied=0
  "${copy[@]}" || copied=$?
  if ((status || copied)); then
    # Hours of cmsRun may be in it: nothing is removed.
    echo "error: container $container ended with status $status; what it had finished is in $output; look into it with 'docker logs $container', remove it with 'docker rm $container'" >&2
    exit $((status ? status : copied))
  fi
  docker rm "$container" >/dev/null
fi

if [[ $dry_run == no ]] && ! command -v python3 >/dev/null; then
  refuse "python3: expected it on the PATH for the tables, found none; run parse_timing.py on $output/*/resources.json elsewhere"
fi
for job in RecoE2E E2EInference; do
  do_it python3 "$here/parse_timing.py" "$output/$job/resources.json" \
    --csv "$output/$job/timing.csv" --markdown "$output/$job/timing.md"
done
