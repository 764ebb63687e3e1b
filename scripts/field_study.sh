#!/usr/bin/env bash
# The study of docs/field.md: every method of the field at BitFit's budget, both learning rates searched, three seeds.
#
#     scripts/field_study.sh GLUE OUTPUTS [TASK...]      (tasks: mrpc stsb cola)
#
# Start it again to go on, or a second time beside itself: finished cells are skipped, running ones are locked.
set -uo pipefail
glue=$1 outputs=$2
shift 2
budgeted=lora,hut,lst,light_peft,dora,pissa,vera,fourierft,hira,loha,delora  # their dials meet a budget
fixed=bitfit,full,ia3,ln_tuning,road  # as large as they are; BitFit's own size is the budget

# Steps of a try, of 32 rows: one and a half epochs. In half of one no rate of any method but full left MRPC's larger class.
declare -A tries=([mrpc]=172 [stsb]=270 [cola]=402)

# Words that name a smaller backbone; it is made once, from MRPC's sentences, by whoever comes first.
smaller() {
    (
        flock 9
        [ -s "$outputs/pela.words" ] || peftbench backbone make=lowrank make.ratio=0.5 task=mrpc data=folder \
            "data.path=$glue" model=minilm_l6 --to "$outputs/pela" > "$outputs/pela.words"
    ) 9> "$outputs/pela.lock"
    cat "$outputs/pela.words"
}

run() {
    peftbench run -m study=field seed=0,1,2 data=folder "data.path=$glue" "outputs=$outputs" tracker=none progress=false \
        protocol.epochs=3 protocol.head_lr=5e-3 select=lr 'select.factors=[1,3,10]' 'select.head_factors=[0.1,1]' "$@"
}

mkdir -p "$outputs"
for task in "${@:-mrpc}"; do
    run "task=$task" "select.max_steps=${tries[$task]}" method=head protocol.head_lr=null select.head_factors=null
    run "task=$task" "select.max_steps=${tries[$task]}" "method=$fixed"
    run "task=$task" "select.max_steps=${tries[$task]}" "method=$budgeted" budget.like=bitfit
    run "task=$task" "select.max_steps=${tries[$task]}" method=adalora budget.like=bitfit 'method.kinds=[query,value]'
done
read -ra small < <(smaller)
[ ${#small[@]} -gt 0 ] || exit 3
for task in "${@:-mrpc}"; do
    run "task=$task" "select.max_steps=${tries[$task]}" method=full "${small[@]}"
done
