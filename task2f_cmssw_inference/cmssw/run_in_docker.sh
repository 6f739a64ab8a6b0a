#!/usr/bin/env bash
# Inference inside CMSSW with one command: container, project area, compilation, cmsRun with
# FastTimerService, and the timing table. Only docker is needed on the host (and python3 for the table).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

usage() {
  cat <<'TEXT'
usage: run_in_docker.sh [options] [MODEL [INPUT [RELEASE [EVENTS]]]]

  MODEL    ONNX file                   (the published one, in weights/)
  INPUT    EDM file                    (SIM_DoubleGammaPt50_Pythia8_1000Ev.root)
  RELEASE  CMSSW release               (12_0_2; as 12_0_2 or CMSSW_12_0_2)
  EVENTS   events to process           (-1: all)

  --written-by RELEASE  release that wrote INPUT (12_0_2)
  --image NAME          another container image; its own project area or /cvmfs is used
  --arch NAME           SCRAM_ARCH (by release)
  --host-cvmfs          mount the host's /cvmfs instead of the container's own
  --output FOLDER       where resources.json, scores.root and the table go (cmssw_RELEASE)
  --threads N           threads of the framework (1)
  --global-tag TAG      conditions, e.g. 120X_upgrade2018_realistic_v1 (none: the producer reads none,
                        and the job then needs no database)
  --dry-run             print the commands, start nothing, need neither docker nor the files
  --help                this text
TEXT
}

refuse() {
  echo "error: $1" >&2
  exit 2
}

# 10_6_8_patch1 -> 100608, comparable as a number
number() {
  local major minor patch
  IFS=_ read -r major minor patch _ <<<"$1"
  echo $((10#$major * 10000 + 10#$minor * 100 + 10#$patch))
}

release_name() { # option or position, value
  local name="${2#CMSSW_}"
  [[ $name =~ ^[0-9]{1,2}_[0-9]{1,2}_[0-9]{1,2}(_[A-Za-z0-9_]+)?$ ]] ||
    refuse "$1: expected a release like 12_0_2, found '$2'; correct it"
  echo "$name"
}

# What a release can do: $engine, $highest (opset and IR version of a model), $wrapper
# (PhysicsTools/ONNXRuntime, which the producer calls).
look_up() {
  local n
  n="$(number "$1")"
  wrapper=yes
  if ((n < 100614)); then
    engine=none highest=none wrapper=no
  elif ((n < 110000)); then
    engine=1.3.0 highest="opset 12, IR 7"
  elif ((n < 110100)); then
    engine=1.0.0 highest="opset 10, IR 5" wrapper=no
  elif ((n < 110200)); then
    engine=1.2.0 highest="opset 11, IR 6"
  elif ((n < 110300)); then
    engine=1.3.0 highest="opset 12, IR 7"
  elif ((n < 120100)); then
    engine=1.7.2 highest="opset 13, IR 7"
  else
    engine="1.7.2 or newer" highest="opset 13, IR 7 or more"
  fi
  # The architecture of the release for CentOS 7, the system of the container.
  if ((n < 110000)); then
    default_arch=slc7_amd64_gcc700
  elif ((n < 110100)); then
    default_arch=slc7_amd64_gcc820
  elif ((n < 120300)); then
    default_arch=slc7_amd64_gcc900
  elif ((n < 130000)); then
    default_arch=slc7_amd64_gcc10
  else
    default_arch=slc7_amd64_gcc11
  fi
}

describe() {
  local verdict=yes
  (($(number "$release") >= $(number "$written_by"))) || verdict=no
  echo "CMSSW_$release"
  echo "  ONNX Runtime                          $engine"
  echo "  loads models up to                    $highest (the exported model: opset 10, IR 5)"
  echo "  PhysicsTools/ONNXRuntime              $wrapper (the producer of this package needs it)"
  echo "  reads a file written by CMSSW_$written_by  $verdict"
}

check_release() {
  [[ $engine != none ]] ||
    refuse "CMSSW_$release: expected a release with ONNX Runtime, found none in it (first in 10_6_14); run 12_0_2 or newer"
  [[ $wrapper == yes ]] ||
    refuse "CMSSW_$release: expected PhysicsTools/ONNXRuntime, found ONNX Runtime $engine without it (there since 11_1_0), so that only code of your own on Ort::Session could run here; run 12_0_2 or newer"
  (($(number "$release") >= $(number "$written_by"))) ||
    refuse "$input: expected a file that CMSSW_$release can read, found one written by CMSSW_$written_by (a release cannot read files of later ones); run $written_by or newer, or name the file's own release with --written-by"
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
set -e
for setup in /cvmfs/cms.cern.ch/cmsset_default.sh /opt/cms/cmsset_default.sh; do
  if [ -f "$setup" ]; then . "$setup"; break; fi
done
export SCRAM_ARCH="$ARCH"
cd "$HOME"
[ -d "CMSSW_$RELEASE" ] || scramv1 project CMSSW "CMSSW_$RELEASE"
cd "CMSSW_$RELEASE/src"
eval "$(scramv1 runtime -sh)"
cp -r /e2e/E2EInference .
scram b -j "$(nproc)"
mkdir -p "$HOME/result"
cd "$HOME/result"
cmsRun "$CMSSW_BASE/src/E2EInference/ElectronPhoton/test/EGInference_cfg.py" \
  "inputFiles=file:/e2e/input/$INPUT_NAME" "maxEvents=$EVENTS" \
  "EGModelName=/e2e/model/$MODEL_NAME" "threads=$THREADS" \
  "globalTag=$GLOBAL_TAG" outputFile=scores.root
# VarParsing writes the number of events into the name.
[ -f scores.root ] || mv scores_numEvent*.root scores.root
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
image="" arch="" output="" written_by=12_0_2 threads=1 global_tag=none dry_run=no host_cvmfs=no
positional=()
while (($#)); do
  case "$1" in
    --help) usage; exit 0 ;;
    --dry-run) dry_run=yes ;;
    --host-cvmfs) host_cvmfs=yes ;;
    --image | --arch | --output | --written-by | --threads | --global-tag)
      (($# > 1)) || refuse "$1: expected a value, found none; see --help"
      case "$1" in
        --image) image="$2" ;;
        --arch) arch="$2" ;;
        --output) output="$2" ;;
        --written-by) written_by="$2" ;;
        --threads) threads="$2" ;;
        --global-tag) global_tag="$2" ;;
      esac
      shift
      ;;
    --*) refuse "$1: expected one of the options of --help, found another; correct it" ;;
    *) positional+=("$1") ;;
  esac
  shift
done
((${#positional[@]} <= 4)) || refuse "command line: expected at most MODEL INPUT RELEASE EVENTS, found ${#positional[@]} arguments; see --help"

model="${positional[0]:-$here/../../weights/task2f_cmssw_inference/task2f_cmssw_inference.onnx}"
input="${positional[1]:-SIM_DoubleGammaPt50_Pythia8_1000Ev.root}"
release="$(release_name RELEASE "${positional[2]:-12_0_2}")"
events="${positional[3]:--1}"
written_by="$(release_name --written-by "$written_by")"
[[ $events =~ ^(-1|[1-9][0-9]*)$ ]] || refuse "EVENTS: expected -1 (all) or a positive number, found '$events'; correct it"
[[ $threads =~ ^[1-9][0-9]*$ ]] || refuse "--threads: expected a positive number, found '$threads'; correct it"

look_up "$release"
describe
check_release
if [[ $dry_run == no ]]; then
  check_files
  check_docker
fi

# Any release comes through cvmfs, which needs fuse in the container, or the host's mount; the
# standalone images (clelange/cmssw:TAG, 15 GB and more) carry one release each.
image="${image:-clelange/cc7-cmssw-cvmfs}"
if [[ $host_cvmfs == yes ]]; then
  access=(-v /cvmfs:/cvmfs --entrypoint "")
elif [[ $image == clelange/cmssw:* ]]; then
  access=()
else
  access=(--cap-add SYS_ADMIN --device /dev/fuse)
fi

output="${output:-cmssw_$release}"
model="$(absolute "$model")"
input="$(absolute "$input")"
container="e2e_${release}_$$"

run=(docker run --name "$container" ${access[@]+"${access[@]}"}
  -e "ARCH=${arch:-$default_arch}" -e "RELEASE=$release" -e "EVENTS=$events"
  -e "THREADS=$threads" -e "GLOBAL_TAG=$global_tag"
  -e "MODEL_NAME=$(basename "$model")" -e "INPUT_NAME=$(basename "$input")"
  -v "$here/E2EInference:/e2e/E2EInference:ro"
  -v "$(dirname "$model"):/e2e/model:ro" -v "$(dirname "$input"):/e2e/input:ro"
  "$image" /bin/bash -c)

if [[ $dry_run == yes ]]; then
  echo
  printf '%q ' "${run[@]}"
  printf "'\n%s\n'\n" "$(container_script)"
else
  trap 'docker rm -f "$container" >/dev/null 2>&1 || true' EXIT
  mkdir -p "$output"
  "${run[@]}" "$(container_script)"
fi

# Copied out, not written to a mount: the user of the container has another number than yours.
do_it docker cp "$container:/home/cmsusr/result/resources.json" "$output/resources.json"
do_it docker cp "$container:/home/cmsusr/result/scores.root" "$output/scores.root"
if [[ $dry_run == no ]] && ! command -v python3 >/dev/null; then
  refuse "python3: expected it on the PATH for the table, found none; run parse_timing.py on $output/resources.json elsewhere"
fi
do_it python3 "$here/parse_timing.py" "$output/resources.json" \
  --csv "$output/timing.csv" --markdown "$output/timing.md"
