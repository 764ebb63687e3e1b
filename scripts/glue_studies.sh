#!/usr/bin/env bash
# Methods on GLUE with MiniLM: eight and AdaLoRA (small), claims that contradict each other, every method of the field.
#
#     scripts/glue_studies.sh GLUE OUTPUTS [STUDY...]      (studies: small contradictions field; default: all)
#
# All of them are one study, glue_small, so that no cell is run twice. What the first two are to show is registered before
# any cell runs. All cells get one seed before any gets the next, so that tables are whole wherever it is stopped. Start it
# again to go on, or once for each core, side by side: what is done is skipped.
set -euo pipefail
trap 'exit 130' INT
trap 'exit 143' TERM
glue=$1 outputs=$2
shift 2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Of 16 rows. Half as many leave BitFit and ID3 at MRPC's larger class; BitFit (3e-3) is still at CoLA's after these 1,000
declare -A steps=([mrpc]=400 [rte]=400 [stsb]=600 [cola]=1000)

# Both rates are searched: the head's at 0.1 and 1 times 5e-3, at the best of 0.3, 1, 3 and 10 times each method's own.
cell=(study=glue_small model=minilm_l6 data=folder "data.path=$glue" tracker=none progress=false
    protocol.precision=fp32  # the fastest where a processor has no instructions for bf16
    protocol.batch_size=16 protocol.head_lr=5e-3 select=lr 'select.factors=[0.3,1,3,10]' 'select.head_factors=[0.1,1]')

# The study in a folder keeps these cells: FOLDER TASKS SEEDS WORD...
keep() {
    local task
    for task in ${2//,/ }; do
        peftbench plan -m "${cell[@]}" "outputs=$1" "task=$task" "seed=$3" "protocol.max_steps=${steps[$task]}" \
            "protocol.evaluate_every=$((steps[$task] / 2))" "${@:4}" --save > /dev/null
    done
}

# The cells of a study: FOLDER SEEDS
declare -A seeds=([small]=0,1,2,3,4,5,6,7 [contradictions]=0,1,2,3,4,5,6,7,8,9 [field]=0,1,2)
small() {
    local of=("$1" mrpc,rte,stsb,cola "$2")
    keep "${of[@]}" method=full,bitfit,lora,spafit
    keep "${of[@]}" method=id3,id3_lora,random_masking budget.like=bitfit
    keep "${of[@]}" method=adalora budget.like=bitfit 'method.kinds=[query,value]'
    keep "${of[@]}" method=head protocol.head_lr=null select.head_factors=null
}
small_claims=('full > lora' 'lora > bitfit' 'id3 > bitfit' 'id3 > random_masking' 'lora > random_masking' 'id3_lora > id3'
    'adalora > lora' 'spafit > bitfit' 'bitfit > head')

contradictions() {
    local rank of=("$1" mrpc,stsb,cola "$2")
    keep "${of[@]}" method=id3,d3,fish,pafi,largest,random_masking budget.like=bitfit
    # LoRA of three ranks at one scale of 2, and as many random entries
    for rank in 1 2 32; do
        keep "${of[@]}" method=lora "method.rank=$rank" "method.alpha=$((2 * rank))" "label=r$rank"
        keep "${of[@]}" method=random_masking "budget=$((9216 * rank))"
    done
    keep "${of[@]}" method=bitfit 'method.kinds=[value]' label=value
    keep "${of[@]}" method=bitfit 'method.kinds=[query,intermediate]' label=query_intermediate
    keep "${of[@]}" method=spafit
    # as many entries of LoRA in all six layers as SPAFIT has in the upper three, and the biases beside them
    keep "${of[@]}" method=spafit label=even method.strata.frozen.last=-1 method.strata.biases.last=-1 \
        method.strata.lora.methods.lora.rank=32 method.strata.lora.methods.lora.alpha=32
}
contradictions_claims=('id3 > d3' 'id3 > fish' 'largest > pafi' 'pafi > random_masking like-bitfit'
    'largest > random_masking like-bitfit' 'bitfit_value > bitfit_query_intermediate' 'spafit > spafit_even'
    'random_masking 9216 = lora_r1' 'random_masking 18432 = lora_r2' 'random_masking 294912 = lora_r32')

# Words that name a smaller backbone; it is made once, from MRPC's sentences, by whoever comes first.
smaller() {
    (
        flock 9
        [ -s "$outputs/pela.words" ] && exit
        rm -rf "${outputs:?}/pela" # what an end in the middle left
        peftbench backbone make=lowrank make.ratio=0.5 task=mrpc data=folder "data.path=$glue" model=minilm_l6 \
            --to "$outputs/pela" > "$outputs/pela.words"
    ) 9> "$outputs/pela.lock"
    cat "$outputs/pela.words"
}

field() {
    local of=("$1" mrpc,stsb,cola "$2") pela
    keep "${of[@]}" method=hut,lst,light_peft,dora,pissa,vera,fourierft,hira,loha,delora budget.like=bitfit
    keep "${of[@]}" method=ia3,ln_tuning,road # as large as they are
    read -ra pela < <(smaller)
    keep "${of[@]}" method=full label=pela "${pela[@]}"
}

# What a study is to show, written down before any cell runs, from a list of its cells in a folder of its own: STUDY
register() {
    local claim claims=() list="$outputs/$1.list" all="$1_claims[@]"
    [ ! -e "$outputs/$1.plan.yaml" ] || return 0
    rm -rf "${list:?}" # what an end in the middle left
    for claim in "${!all}"; do claims+=(--claim "$claim"); done
    "$1" "$list" "${seeds[$1]}"
    peftbench plan study=glue_small "outputs=$outputs" --saved-in "$list" --register "$outputs/$1.plan.yaml" \
        "${claims[@]}" > /dev/null
}

[ $# -gt 0 ] || set -- small contradictions field
for study in "$@"; do
    [[ " small contradictions field " == *" $study "* ]] || { echo "$study: no study; small contradictions field" >&2 && exit 2; }
done
mkdir -p "$outputs"
(
    flock 9
    register small
    register contradictions
) 9> "$outputs/plans.lock"
for study in "$@"; do
    for seed in ${seeds[$study]//,/ }; do
        "$study" "$outputs" "$seed"
        code=0
        peftbench work glue_small --outputs "$outputs" --wait || code=$?
        [ "$code" -ne 76 ] || exit 76 # peftbench stop
        [ "$code" -eq 0 ] || echo "$study, seed $seed: not all was made" >&2
    done
done
for study in "$@"; do
    [ ! -e "$outputs/$study.plan.yaml" ] || peftbench compare glue_small --plan "$outputs/$study.plan.yaml" --outputs "$outputs"
done
