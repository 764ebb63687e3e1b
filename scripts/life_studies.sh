#!/usr/bin/env bash
# The studies of docs/after.md: what becomes of runs after their end.
#
#     scripts/life_studies.sh GLUE OUTPUTS [STUDY...]      (studies: merge port flips muscle sequence edit; default: all)
#
# All of them use the runs of study "life", which are trained once. Start it again to go on, or once for each core, side by
# side: what is done is skipped, and what somebody makes is left to him. A study that fails does not end the others.
# PRECISION=fp32 is a little faster where the processor has no instructions for bf16.
set -euo pipefail
trap 'exit 130' INT
trap 'exit 143' TERM
glue=$1 outputs=$2
shift 2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
steps=400 # of 16 rows
cola=(1340 protocol.batch_size=32) # five epochs: LoRA is at CoLA's larger class after 2,000 steps of 16, full fine-tuning after 400
# Rates of backbone and head with which so few steps leave MRPC's larger class
declare -A rate=([full]=1e-4 [lora]=1.5e-3 [bitfit]=3e-3 [id3]=6e-3) head=([full]=1e-3 [lora]=3e-3 [bitfit]=5e-3 [id3]=5e-3)
precision="protocol.precision=${PRECISION:-bf16}"
here=(data=folder "data.path=$glue" "outputs=$outputs" tracker=none)
cell=("${here[@]}" model=minilm_l6 progress=false "$precision" protocol.selection=held_out
    protocol.batch_size=16 "protocol.evaluate_every=$steps" seed=0,1,2) # "port" looks for just these words, with fewer steps

# A study keeps these cells of a method for its workers: METHOD STEPS WORD...
plan() {
    local own=("method=$1" "protocol.lr=${rate[$1]}" "protocol.head_lr=${head[$1]}")
    [ "$1" != id3 ] || own+=(budget.like=bitfit)
    peftbench plan "${cell[@]}" "${own[@]}" "protocol.max_steps=$2" "${@:3}" --save > /dev/null
}

# Be a worker of a study until all of it is made; what failed is missing from the tables.
work() {
    local code=0
    peftbench work "$1" --outputs "$outputs" --wait || code=$?
    [ "$code" -ne 76 ] || exit 76 # peftbench stop
    [ "$code" -eq 0 ] || echo "$1: not all was made" >&2
}

show() { peftbench table "$1" --outputs "$outputs" "${@:2}"; }

# The runs that the others use: TASKS METHOD...
runs() {
    local method task
    for method in "${@:2}"; do
        for task in ${1//,/ }; do
            case $task-$method in
                cola-*) plan "$method" "${cola[@]}" study=life task=cola ;;
                stsb-lora) plan lora "$steps" study=life task=stsb protocol.lr=5e-4 ;; # three times as much loses two seeds of three
                *) plan "$method" "$steps" study=life "task=$task" ;;
            esac
        done
    done
    work life
}

# The folder of a row's runs, but for the seed: TASK METHOD
row() {
    local all=("$outputs/life/$1-$2"-minilm_l6-*/seed0)
    [ ${#all[@]} -eq 1 ] && [ -d "${all[0]}" ] || { echo "$1 $2: not one row of runs: ${all[*]}" >&2 && return 1; }
    dirname "${all[0]}"
}

# A command that others may be at, too: again, until nothing is left to them.
persist() {
    local code=75
    while [ "$code" -eq 75 ]; do
        code=0
        "$@" || code=$?
        [ "$code" -ne 75 ] || sleep 30
    done
    return "$code"
}

merge() {
    local method all=cola,mrpc,rte,sst2,stsb
    local grid='merge.grid=[0.2,0.4,0.7,1,1.4,2,3]' # published: 0.1 to 1 for sums, 0.8 to 3 for TIES and PCB
    runs "$all" full lora bitfit id3
    for method in full lora bitfit id3; do
        # at this temperature every task has a fifth of the steps: as many as its own runs, CoLA fewer
        plan "$method" $((5 * steps)) study=life task=joint "task.tasks=[$all]" task.temperature=100
    done
    work life
    for method in full lora bitfit id3; do
        local of=(from=life "method=$method" "tasks=[$all]" seed=0,1,2 study=life_merge merge.refit_rows=500 "${here[@]}")
        peftbench merge "${of[@]}" merge=average --save
        peftbench merge "${of[@]}" merge.choose_rows=128 "$grid" merge=task_arithmetic --save
        peftbench merge "${of[@]}" merge.choose_rows=128 "$grid" \
            merge=ties,pcb merge.keep=held_out 'merge.keeps=[0.1,0.2,0.5,1]' --save
        # RegMean merges matrices, and BitFit's runs changed none
        [ "$method" = bitfit ] || peftbench merge "${of[@]}" merge=regmean merge.rows=256 --save
    done
    work life_merge
    show life_merge
    show life_merge --show merges
    show life_merge --show distances
}

# Words that name a newer backbone, which is made by whoever comes first: NAME WORD...
newer() {
    (
        flock 9
        [ -s "$outputs/$1.words" ] && exit
        rm -rf "${outputs:?}/$1" # what an end in the middle left
        peftbench backbone "${@:2}" --to "$outputs/$1" > "$outputs/$1.words"
    ) 9> "$outputs/$1.lock"
    cat "$outputs/$1.words"
}

port() {
    local distance method on=(model=minilm_l6 task=sst2 data=folder "data.path=$glue" "$precision")
    runs sst2 full lora bitfit
    runs stsb full
    method=$(row stsb full) # by itself: a list would go on without it
    declare -A make=(
        [near]="make=mlm make.steps=30 ${on[*]}"
        [far]="make=mlm make.steps=200 ${on[*]}"
        [merged]="make=merged make.run=$method/seed0"
    )
    for distance in near far merged; do
        local onto=() study=life_port_$distance
        read -ra onto < <(newer "$distance" ${make[$distance]})
        for method in full lora bitfit; do
            plan "$method" "$steps" "study=$study.port" task=sst2 "${onto[@]}"
            plan "$method" 100 "study=$study.port" task=sst2 "${onto[@]}"
        done
        work "$study.port" # runs trained anew are the ceilings that ports look for
        peftbench port from=life task=sst2 method=full,lora,bitfit seed=0,1,2 "${onto[@]}" "study=$study" \
            port.steps=0,100 port.refit_rows=500 "${here[@]}" --save
        work "$study"
        show "$study"
        show "$study" --show distances
    done
}

flips() {
    runs cola,mrpc,rte,sst2,stsb full lora bitfit
    peftbench flips life life --old-row bitfit --new-row lora --outputs "$outputs"
    peftbench flips life life --old-row lora --new-row full --outputs "$outputs"
}

muscle() {
    local task study old new
    runs mrpc,sst2 bitfit lora
    for task in mrpc sst2; do
        old=$(row "$task" bitfit)
        new=$(row "$task" lora)
        old+=/seed\${seed} new+=/seed\${seed}
        local update=("task=$task" objective=muscle "init_from=\"$new\"")
        plan lora 200 study=life_muscle "${update[@]}" "objective.old=\"$old\"" objective.teacher=student_wrong,old_right,old,none
        plan lora 200 study=life_muscle_mixed "${update[@]}" "objective.old=\"$old\"" objective.mix=0.5
        plan lora 200 study=life_muscle_itself "${update[@]}" "objective.old=\"$new\""
    done
    peftbench flips life life --old-row bitfit --new-row lora --outputs "$outputs"
    for study in life_muscle life_muscle_mixed life_muscle_itself; do
        work "$study"
        peftbench flips life "$study" --old-row bitfit --without life --without-row lora --outputs "$outputs"
    done
}

sequence() {
    local of=(sequence.cap=1000 study=life_sequence seed=0,1,2 "$precision" "${here[@]}")
    local trained=(learner.epochs=3 learner.batch_size=16 learner.optimizer=adamw)
    local whole=("${trained[@]}" learner.lr=1e-4 learner.head_lr_factor=10) # as full fine-tuning above
    peftbench sequence learner=simplecil order=0,1,2 "${of[@]}" --save
    peftbench sequence learner=finetune order=0,1,2 "${whole[@]}" "${of[@]}" --save
    peftbench sequence learner=aper,mos,oracle learner.lr=2e-3 learner.head_lr_factor=1 order=0,1,2 "${trained[@]}" "${of[@]}" --save
    # all tasks at once: their order is none
    peftbench sequence learner=joint order=0 "${whole[@]}" "${of[@]}" --save
    work life_sequence
    show life_sequence --show sequences
}

edit() {
    runs cola,mrpc,rte,sst2,stsb lora
    persist peftbench edit "$(row mrpc lora)"/seed[0-2] edit.behaviour=overlap edit.strength=0.25,0.5,1 study=life_edit \
        edit.control=none,random_direction,random_rows,aligned,sign_flipped,bias
    show life_edit --show edits
}

mkdir -p "$outputs"
all=(merge port flips muscle sequence edit)
[ $# -gt 0 ] || set -- "${all[@]}"
if [ $# -eq 1 ]; then
    [[ " ${all[*]} " == *" $1 "* ]] || { echo "$1: no study; ${all[*]}" >&2 && exit 2; }
    "$1"
    exit
fi
failed=()
for study in "$@"; do bash "$0" "$glue" "$outputs" "$study" || failed+=("$study"); done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2 && exit 1; }
