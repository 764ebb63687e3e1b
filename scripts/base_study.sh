#!/usr/bin/env bash
# Does the order of methods on MiniLM carry over to a base-size encoder? all-mpnet-base-v2 (109M), three epochs.
#
#     scripts/base_study.sh GLUE OUTPUTS MPNET [SEED...]      (MPNET: a folder with its weights; default: seeds 0 and 1)
#
# The claims are those of study "small" of glue_studies.sh, registered before any cell runs. A cell takes 8 to 15 minutes
# of two cores with instructions for bf16 (without them longer, and PRECISION=fp32 is the faster), so all methods get one
# seed before any gets the next. Start it again to go on, or once for each core: what is done is skipped.
set -euo pipefail
trap 'exit 130' INT
trap 'exit 143' TERM
glue=$1 outputs=$2 mpnet=$3
shift 3
[ $# -gt 0 ] || set -- 0 1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Each method's own rate, at the best of 0.3, 1 and 3 times its default after 100 steps: a third of RTE's run, a fifth of STS-B's
cell=(study=glue_base model=all_mpnet_base "model.weights=$mpnet" data=folder "data.path=$glue" tracker=none progress=false
    "protocol.precision=${PRECISION:-bf16}" protocol.epochs=3 protocol.evaluate_every=1000000
    select=lr 'select.factors=[0.3,1,3]' select.max_steps=100)
claims=('full > lora' 'lora > bitfit' 'id3 > bitfit' 'id3 > random_masking' 'lora > random_masking' 'spafit > bitfit')

# The study in a folder keeps these cells: FOLDER SEED...
keep() {
    local seeds=${*:2}
    local of=(-m "${cell[@]}" "outputs=$1" task=rte,mrpc,stsb "seed=${seeds// /,}")
    peftbench plan "${of[@]}" method=full,bitfit,lora,spafit --save > /dev/null
    peftbench plan "${of[@]}" method=id3,random_masking budget.like=bitfit --save > /dev/null
}

# What the study is to show, from a list of its cells in a folder of its own
register() {
    local claim words=() list="$outputs/base.list"
    [ ! -e "$outputs/base.plan.yaml" ] || return 0
    rm -rf "${list:?}" # what an end in the middle left
    for claim in "${claims[@]}"; do words+=(--claim "$claim"); done
    keep "$list" "$@"
    peftbench plan study=glue_base "outputs=$outputs" --saved-in "$list" --register "$outputs/base.plan.yaml" \
        "${words[@]}" > /dev/null
}

mkdir -p "$outputs"
(
    flock 9
    register "$@"
) 9> "$outputs/plans.lock"
for seed in "$@"; do
    keep "$outputs" "$seed"
    code=0
    peftbench work glue_base --outputs "$outputs" --wait || code=$?
    [ "$code" -ne 76 ] || exit 76 # peftbench stop
    [ "$code" -eq 0 ] || echo "seed $seed: not all was made" >&2
done
peftbench compare glue_base --plan "$outputs/base.plan.yaml" --outputs "$outputs"
