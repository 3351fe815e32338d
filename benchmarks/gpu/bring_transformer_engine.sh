#!/usr/bin/env bash
# Brings Megatron-Core and Transformer Engine to a GPU node that has no network.
# docs/guides/gpu-node.md walks through it.
set -euo pipefail

MEGATRON_CORE=0.16.1
TRANSFORMER_ENGINE=2.11.0 # newest that Megatron-Core 0.16.1 accepts (>=2.9, <2.12)
SUMS=SHA256SUMS

usage() {
    cat <<'TEXT'
bring_transformer_engine.sh pack OUT [--python 3.12] [--limit 60M] [--wheels DIR]
    On a connected machine: download the packages for that Python on Linux x86-64 with CUDA 13, cut
    files above the limit into parts and write OUT/SHA256SUMS. With --wheels, pack the files of DIR
    instead of downloading any.
bring_transformer_engine.sh join DIR OUT
    On the node: verify what arrived in DIR against SHA256SUMS and put the whole files into OUT.
bring_transformer_engine.sh install DIR [--target T]
    On the node: verify, join, install without an index, build the PyTorch binding, import it.
    Packages go to the folder T (put it on PYTHONPATH), by default into the environment of $PYTHON.

Environment of install: PYTHON (python3), CUDA_HOME (/usr/local/cuda), CUDNN_PATH (the nvidia-cudnn
wheel), NVTE_CUDA_ARCHS (90, Hopper), MAX_JOBS (all cores).
TEXT
}

fail() {
    echo "bring_transformer_engine.sh: $*" >&2
    exit 1
}

require_value() {
    [[ $# -ge 2 ]] || fail "$1 needs a value"
}

# Wheels come from pip, so that a company's own index and certificates are used as configured.
download() {
    local wheels=$1 python=$2 work=$3
    python3 -m venv "$work/env"
    "$work/env/bin/pip" install --quiet setuptools wheel packaging
    echo "Downloading megatron-core $MEGATRON_CORE and transformer-engine $TRANSFORMER_ENGINE ..."
    "$work/env/bin/pip" download --quiet --no-deps --dest "$wheels" --only-binary=:all: \
        --python-version "$python" --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 \
        --platform manylinux2014_x86_64 \
        "megatron-core==$MEGATRON_CORE" \
        "transformer-engine==$TRANSFORMER_ENGINE" "transformer-engine-cu13==$TRANSFORMER_ENGINE" \
        einops psutil "setuptools<82" wheel packaging pybind11 ninja
    pretend_torch "$work/torch"
    PYTHONPATH="$work/torch" "$work/env/bin/pip" download --quiet --no-deps --dest "$wheels" \
        --no-build-isolation --no-binary transformer-engine-torch \
        "transformer-engine-torch==$TRANSFORMER_ENGINE"
}

# pip asks a source package for its metadata, and this one's needs torch with CUDA for that alone:
# gigabytes for one version number. The names it imports are enough.
pretend_torch() {
    mkdir -p "$1/torch/utils"
    echo 'from torch import version' >"$1/torch/__init__.py"
    echo 'cuda = "13.0"' >"$1/torch/version.py"
    touch "$1/torch/utils/__init__.py"
    cat >"$1/torch/utils/cpp_extension.py" <<'PYTHON'
from setuptools import Extension as CppExtension
from setuptools.command.build_ext import build_ext as BuildExtension
PYTHON
}

split_into() {
    local wheels=$1 packed=$2 limit=$3 bytes file name
    bytes=$(numfmt --from=iec "$limit")
    for file in "$wheels"/*; do
        name=$(basename "$file")
        if [[ $(stat --format=%s "$file") -gt $bytes ]]; then
            split --bytes="$bytes" --numeric-suffixes --suffix-length=3 \
                "$file" "$packed/$name.part-"
        else
            cp "$file" "$packed/$name"
        fi
    done
    (cd "$packed" && sha256sum -- * >"$SUMS")
}

pack() {
    local out="" python=3.12 limit=60M wheels=""
    while [[ $# -gt 0 ]]; do
        case $1 in
            --python) require_value "$@" && python=$2 && shift 2 ;;
            --limit) require_value "$@" && limit=$2 && shift 2 ;;
            --wheels) require_value "$@" && wheels=$2 && shift 2 ;;
            -*) fail "pack has no option $1" ;;
            *) [[ -z $out ]] || fail "pack takes one folder"; out=$1 && shift ;;
        esac
    done
    [[ -n $out ]] || fail "pack needs the folder to write"
    [[ ! -e $out ]] || fail "$out exists; choose another folder, or remove it"
    mkdir -p "$(dirname "$out")"
    work=$(mktemp -d "$(dirname "$out")/.pack-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/packed"
    if [[ -z $wheels ]]; then
        wheels=$work/wheels
        mkdir "$wheels"
        download "$wheels" "$python" "$work"
    fi
    split_into "$wheels" "$work/packed" "$limit"
    cp "${BASH_SOURCE[0]}" "$work/packed/"
    mv "$work/packed" "$out"
    echo "$out holds:"
    (cd "$out" && wc --bytes -- *)
    echo "Carry every file to the node, then run there:"
    echo "    bash $(basename "${BASH_SOURCE[0]}") install FOLDER [--target T]"
}

verify() {
    local dir=$1
    [[ -f $dir/$SUMS ]] || fail "$dir has no $SUMS; carry all files that pack wrote"
    (cd "$dir" && sha256sum --check --quiet --strict "$SUMS") >&2 ||
        fail "the files named above are missing or damaged in $dir; carry them again"
}

join_into() {
    local dir=$1 out=$2 name whole
    mkdir -p "$out"
    # In the order of the names, the parts of a file follow each other from 000 on.
    awk '{print $2}' "$dir/$SUMS" | sort | while read -r name; do
        whole=${name%.part-[0-9][0-9][0-9]}
        cat "$dir/$name" >>"$out/$whole"
    done
}

join() {
    [[ $# -eq 2 ]] || fail "join needs the folder that arrived and the folder to write"
    [[ ! -e $2 ]] || fail "$2 exists; choose another folder, or remove it"
    verify "$1"
    mkdir -p "$(dirname "$2")"
    work=$(mktemp -d "$(dirname "$2")/.join-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    join_into "$1" "$work/joined"
    mv "$work/joined" "$2"
    echo "$2 holds $(find "$2" -type f | wc -l) whole files"
}

# Where the headers and libraries of the nvidia-cudnn wheel lie.
cudnn_of_wheel() {
    "$PYTHON" -c 'import importlib.util
spec = importlib.util.find_spec("nvidia.cudnn")
print(next(iter(spec.submodule_search_locations)) if spec else "")'
}

require_toolchain() {
    "$PYTHON" -c 'import torch, sys; sys.exit(not (torch.version.cuda or "").startswith("13."))' ||
        fail "$PYTHON has no torch for CUDA 13"
    export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
    [[ -x $CUDA_HOME/bin/nvcc ]] || fail "no $CUDA_HOME/bin/nvcc; set CUDA_HOME to the CUDA toolkit"
    export CUDNN_PATH=${CUDNN_PATH:-$(cudnn_of_wheel)}
    [[ -f $CUDNN_PATH/include/cudnn.h ]] ||
        fail "no cudnn.h under '$CUDNN_PATH'; install nvidia-cudnn-cu13 or set CUDNN_PATH"
}

install_from() {
    local wheels=$1
    shift
    local pip=("$PYTHON" -m pip install --no-deps --no-index --quiet "$@")
    echo "1. Installing the wheels"
    "${pip[@]}" "$wheels"/*.whl
    echo "2. Building the PyTorch binding (some minutes)"
    # Without FORCE_BUILD its setup first tries to reach a release page.
    CPLUS_INCLUDE_PATH=$CUDNN_PATH/include:$CUDA_HOME/include${CPLUS_INCLUDE_PATH:+:$CPLUS_INCLUDE_PATH} \
        PATH=$CUDA_HOME/bin:$PATH NVTE_FRAMEWORK=pytorch NVTE_PYTORCH_FORCE_BUILD=TRUE \
        NVTE_CUDA_ARCHS=${NVTE_CUDA_ARCHS:-90} MAX_JOBS=${MAX_JOBS:-$(nproc)} \
        "${pip[@]}" --no-build-isolation "$wheels"/transformer_engine_torch-*.tar.gz
}

install_packages() {
    local dir="" target=""
    while [[ $# -gt 0 ]]; do
        case $1 in
            --target) require_value "$@" && target=$2 && shift 2 ;;
            -*) fail "install has no option $1" ;;
            *) [[ -z $dir ]] || fail "install takes one folder"; dir=$1 && shift ;;
        esac
    done
    [[ -n $dir ]] || fail "install needs the folder that arrived"
    PYTHON=${PYTHON:-python3}
    verify "$dir"
    require_toolchain
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    join_into "$dir" "$work/wheels"
    if [[ -n $target ]]; then
        # The build tools that came along lie in the target too.
        export PYTHONPATH=$target${PYTHONPATH:+:$PYTHONPATH} PATH=$target/bin:$PATH
        install_from "$work/wheels" --target "$target" --upgrade
    else
        install_from "$work/wheels"
    fi
    echo "3. Importing"
    "$PYTHON" -c 'import torch, megatron.core, transformer_engine, transformer_engine.pytorch
print("torch", torch.__version__, "on", torch.cuda.get_device_name())
print("megatron-core", megatron.core.__version__)
print("transformer-engine", transformer_engine.__version__)'
    echo "Done.${target:+ Keep $target on PYTHONPATH.}"
}

case ${1:-} in
    pack) shift && pack "$@" ;;
    join) shift && join "$@" ;;
    install) shift && install_packages "$@" ;;
    -h | --help) usage ;;
    *) usage >&2 && exit 2 ;;
esac
