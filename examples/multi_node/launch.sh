#!/usr/bin/env bash
#SBATCH --job-name=mem1
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --output=%x-%j.out
#
# Train on several nodes, with a vLLM server on the last of them.
#
#   sbatch examples/multi_node/launch.sh --model Qwen/Qwen2.5-7B-Instruct -- examples/multi_node/train.py --output_dir runs/7b
#   examples/multi_node/launch.sh --dry_run --nodes "a b c" --model Qwen/Qwen2.5-0.5B-Instruct -- train.py
#
# After `--` come the training script and its arguments; the model and the address of vLLM are added to them.
set -euo pipefail

usage() {
    cat <<'EOF'
usage: launch.sh --model ID [OPTIONS] -- SCRIPT [ARGUMENTS]

  --model ID             id or path of the model, on a disk that every node sees, or on the Hub
  --gpus_per_node N      GPUs of a node (default: 8, or what SLURM says)
  --tensor_parallel N    GPUs that share one copy of the model in vLLM (default: 1)
  --data_parallel N      copies of the model in vLLM (default: GPUs of a node / tensor_parallel)
  --max_model_len N      longest context and completion together (default: vLLM's own)
  --vllm_port N          port of the vLLM server (default: 8000)
  --rendezvous_port N    port on the first node where processes find each other (default: 29500)
  --nodes "A B C"        names of the nodes, the server's last (default: those of the SLURM job)
  --dry_run              print the commands instead of running them
EOF
}

fail() {
    echo "launch.sh: $1" >&2
    exit 2
}

need_number() {
    [[ "$2" =~ ^[1-9][0-9]*$ ]] || fail "$1 is '$2', but must be a whole number above 0."
}

model="" nodes="" dry_run=false max_model_len="" data_parallel=""
gpus_per_node="${SLURM_GPUS_ON_NODE:-8}"
tensor_parallel=1 vllm_port=8000 rendezvous_port=29500

while [[ $# -gt 0 ]]; do
    case "$1" in
        --model | --gpus_per_node | --tensor_parallel | --data_parallel | --max_model_len | --vllm_port | --rendezvous_port | --nodes)
            [[ $# -ge 2 && "$2" != --* ]] || fail "$1 needs a value."
            declare "${1#--}=$2"
            shift 2
            ;;
        --dry_run)
            dry_run=true
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        --)
            shift
            break
            ;;
        *) fail "there is no option '$1' (the training script comes after --); --help lists the options." ;;
    esac
done

[[ -n "$model" ]] || fail "--model is missing: pass the id or path of the model."
[[ $# -ge 1 ]] || fail "the training script is missing: put it, and its arguments, after --."
need_number --gpus_per_node "$gpus_per_node"
need_number --tensor_parallel "$tensor_parallel"
need_number --vllm_port "$vllm_port"
need_number --rendezvous_port "$rendezvous_port"
if [[ -z "$data_parallel" ]]; then
    ((gpus_per_node % tensor_parallel == 0)) ||
        fail "--tensor_parallel $tensor_parallel does not divide the $gpus_per_node GPUs of a node: pass --data_parallel as well."
    data_parallel=$((gpus_per_node / tensor_parallel))
fi
need_number --data_parallel "$data_parallel"
((tensor_parallel * data_parallel <= gpus_per_node)) ||
    fail "vLLM would need $((tensor_parallel * data_parallel)) GPUs of a node that has $gpus_per_node: lower --tensor_parallel or --data_parallel."

if [[ -z "$nodes" ]]; then
    [[ -n "${SLURM_JOB_NODELIST:-}" ]] || fail "this is not a SLURM job: start it with sbatch, or name the nodes with --nodes."
    nodes="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
fi
read -r -a names <<<"${nodes//$'\n'/ }"
((${#names[@]} >= 2)) || fail "${#names[@]} node is too few: the last one serves vLLM and the others train."
server="${names[-1]}"
trainers=("${names[@]:0:${#names[@]}-1}")

serve=(
    srun --nodes=1 --ntasks=1 --nodelist="$server"
    trl vllm-serve --model "$model" --host 0.0.0.0 --port "$vllm_port"
    --tensor_parallel_size "$tensor_parallel" --data_parallel_size "$data_parallel"
)
if [[ -n "$max_model_len" ]]; then
    need_number --max_model_len "$max_model_len"
    serve+=(--max_model_len "$max_model_len")
    lengths=(--vllm_max_model_length "$max_model_len") # the trainer keeps contexts below it
fi

train=(
    srun --nodes="${#trainers[@]}" --ntasks="${#trainers[@]}" --ntasks-per-node=1
    --nodelist="$(
        IFS=,
        echo "${trainers[*]}"
    )"
    torchrun --nnodes="${#trainers[@]}" --nproc_per_node="$gpus_per_node"
    --rdzv_backend=c10d --rdzv_endpoint="${trainers[0]}:$rendezvous_port" --rdzv_id="${SLURM_JOB_ID:-mem1}"
    "$@" --model_name_or_path "$model"
    --use_vllm True --vllm_mode server --vllm_server_host "$server" --vllm_server_port "$vllm_port" --vllm_server_timeout 1800
    ${lengths[@]+"${lengths[@]}"}
)

if $dry_run; then
    printf '%q ' "${serve[@]}"
    printf '&\n'
    printf '%q ' "${train[@]}"
    printf '\n'
    exit 0
fi

"${serve[@]}" &
server_pid=$!
# The server runs until it is told to stop, however training ends
trap 'kill "$server_pid" 2>/dev/null || true; wait "$server_pid" 2>/dev/null || true' EXIT
"${train[@]}"
