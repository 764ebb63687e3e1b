#!/usr/bin/env bash
# The second study of docs/few_labels.md: LiST and what it is made of, with 30 labelled rows in all, beside all of train.
#
#     scripts/list_study.sh GLUE TEXT OUTPUTS [TASK...]      (tasks: mrpc rte sst2 qnli)
#
# MiniLM has no masked-LM head, so one is trained on TEXT first (plain English, a file or a folder of *.txt): the scores
# say whether the method's code works, not what LiST is worth.
# Start it again to go on, or a second time beside itself: finished cells are skipped, running ones are locked.
set -uo pipefail
trap 'exit 130' INT
trap 'exit 143' TERM
glue=$1 text=$2 outputs=$3
shift 3

# Words that name the backbone with its head; it is made once, by whoever comes first.
with_head() {
    (
        flock 9
        [ -s "$outputs/mlm.words" ] && exit
        rm -rf "${outputs:?}/mlm" # what an end in the middle left
        peftbench backbone make=mlm "make.text=$text" make.steps=1000 model=minilm_l6 protocol.max_length=64 \
            --to "$outputs/mlm" > "$outputs/mlm.words"
    ) 9> "$outputs/mlm.lock"
    cat "$outputs/mlm.words"
}

run() {
    peftbench run -m study=list data=folder "data.path=$glue" "outputs=$outputs" tracker=none progress=false \
        "${own[@]}" "$@"
}

mkdir -p "$outputs"
read -ra own < <(with_head)
[ ${#own[@]} -gt 0 ] || exit 3

# LiST's teacher: 50 passes over the labelled rows, 4 a step. Its rates are for RoBERTa-large; MiniLM has each method's own.
few=(protocol=list shots.total=30 shots.split=1,2,3,4,5)
full=(method=full protocol.lr=5e-5)
light=(method=linear_adapter protocol.lr=1e-3 readout=prompt readout.head=all)
# A third of the paper's sessions, of 60 steps and 10 passes, not 1,000 and 50: what two cores can do in hours.
list=(selftrain=list selftrain.sessions=2 selftrain.steps=60 selftrain.epochs=10)

for task in "${@:-mrpc}"; do
    run "task=$task" "${few[@]}" "${full[@]}" protocol.head_lr=5e-3  # a classifier
    run "task=$task" "${few[@]}" "${full[@]}" readout=prompt readout.head=all
    run "task=$task" "${few[@]}" "${light[@]}"  # the teacher
    run "task=$task" "${few[@]}" "${light[@]}" "${list[@]}" selftrain.weights=uniform,meta
    # All rows: an epoch of MRPC and RTE; the others take MRPC's steps.
    case $task in sst2 | qnli) all=(protocol.max_steps=115) ;; *) all=(protocol.epochs=1) ;; esac
    run "task=$task" seed=0,1,2 "${full[@]}" readout=prompt readout.head=all protocol.evaluate_every=1000000 "${all[@]}"
done
