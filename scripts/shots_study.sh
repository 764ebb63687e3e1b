#!/usr/bin/env bash
# The first study of docs/few_labels.md: six methods with 8 to 128 labelled rows of each class, and with all of train.
#
#     scripts/shots_study.sh GLUE OUTPUTS [TASK...]      (tasks: mrpc rte sst2)
#
# Start it again to go on, or a second time beside itself: finished cells are skipped, running ones are locked.
set -uo pipefail
trap 'exit 130' INT
trap 'exit 143' TERM
glue=$1 outputs=$2
shift 2

# Nothing is left to search a rate on with few labels, so every method has one for all sizes and tasks: what the search of
# docs/results.md chose on all of MRPC (the records are in docs/study). The head's is the one that all had there.
declare -A rate=([full]=5e-5 [bitfit]=3e-3 [lora]=1.5e-3 [id3]=6e-3 [random_masking]=3e-2 [head]=5e-3)

# Every size takes the same steps, so that a curve shows what labels are worth and not what training is: 100 of 8 rows are
# 50 passes over the 16 rows of the smallest size (LiST's number) and three over the 256 of the largest.
few=(shots.per_class=8,16,32,64,128 shots.split=1,2,3,4,5 protocol.max_steps=100 protocol.batch_size=8)

run() {
    peftbench run -m study=shots data=folder "data.path=$glue" "outputs=$outputs" tracker=none progress=false \
        protocol.evaluate_every=1000000 "$@"
}

mkdir -p "$outputs"
for task in "${@:-mrpc}"; do
    # All rows: two epochs of MRPC and RTE; SST-2 takes MRPC's steps, which see 7,360 of its 67,349 rows.
    all=(seed=0,1,2 protocol.batch_size=32)
    case $task in sst2) all+=(protocol.max_steps=230) ;; *) all+=(protocol.epochs=2) ;; esac
    for method in full bitfit lora id3 random_masking head; do
        words=("task=$task" "method=$method" "protocol.lr=${rate[$method]}" protocol.head_lr=5e-3)
        case $method in
        id3 | random_masking) words+=(budget.like=bitfit) ;;
        esac
        run "${words[@]}" "${few[@]}"
        run "${words[@]}" "${all[@]}"
    done
done
