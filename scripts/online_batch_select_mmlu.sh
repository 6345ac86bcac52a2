#!/bin/sh
# The command of the published GREATS code, with its arguments and their meaning, on `greats train`:
#
#   scripts/online_batch_select_mmlu.sh METHOD BATCH PERCENT NVAL TASK MODEL LORA_ALPHA LR [SEED] [GRAD_ACC] [SUBJECT]
#   scripts/online_batch_select_mmlu.sh GREATS 2 0.05 5 mmlu meta-llama/Llama-2-7b-hf 1 2e-05 11 1 sociology
#
#   METHOD      Regular, GREATS, GradNorm or MaxLoss.
#   BATCH       As published, and not the same for every method. GREATS keeps BATCH of 2 x BATCH candidates; Regular
#               trains on BATCH; GradNorm and MaxLoss keep BATCH / 2 of BATCH candidates. So at equal BATCH the methods
#               learn from different numbers of examples. In `greats train`, batch always counts candidates.
#   PERCENT     Fraction of the training data: 0.05 is 5 percent.
#   NVAL        Validation examples of the subject; 2 of them, drawn afresh, are scored against in each step.
#   TASK        mmlu.
#   MODEL       Folder, hub id, .gguf file or package:NAME. (The published script ignored it and ran Llama-2-7B.)
#   LORA_ALPHA  alpha of LoRA; the rank is 128.
#   LR          Peak learning rate.
#   SEED        Default 42.
#   GRAD_ACC    Micro-batches per update; default 1.
#   SUBJECT     Default world_religions.
#
# Further arguments of the form key=value go to `greats train` as they are and win: steps=100 output=runs/trial.
#
# Environment:
#   TRAIN_DATA  Training files or folders, separated by commas; default data/train/processed (where LESS puts them).
#   MMLU_DATA   Folder with dev/ and test/; default data/eval/mmlu.
#
# All other settings are in configs/mmlu_less.yaml. It trains for 1 epoch, as published on paper; the published loop ran
# 50 (epochs=50).
set -eu

fail() {
  echo "greats: error: $1" >&2
  exit 2
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
config="$here/configs/mmlu_less.yaml"

seed=
accumulate=
subject=

# Arguments with an equals sign after a key are overrides; the others keep their positions.
count=$#
positions=0
while [ "$count" -gt 0 ]; do
  argument=$1
  shift
  count=$((count - 1))
  if printf '%s' "$argument" | grep -Eq '^[a-z_][a-z0-9_.]*='; then
    set -- "$@" "$argument"
    continue
  fi
  positions=$((positions + 1))
  case $positions in
    1) method=$argument ;;
    2) batch=$argument ;;
    3) percent=$argument ;;
    4) n_val=$argument ;;
    5) task=$argument ;;
    6) model=$argument ;;
    7) alpha=$argument ;;
    8) rate=$argument ;;
    9) seed=$argument ;;
    10) accumulate=$argument ;;
    11) subject=$argument ;;
    *) fail "too many arguments, from \"$argument\" on; the header of $0 lists them" ;;
  esac
done
[ "$positions" -ge 8 ] || fail "$positions arguments given, at least 8 needed: METHOD BATCH PERCENT NVAL TASK MODEL LORA_ALPHA LR [SEED] [GRAD_ACC] [SUBJECT]"

case $batch in
  '' | *[!0-9]* | 0) fail "BATCH is \"$batch\", but must be a whole number of at least 1" ;;
esac
case $method in
  Regular) rule=regular candidates=$batch kept=$batch ;;
  GREATS) rule=greats candidates=$((2 * batch)) kept=$batch ;;
  GradNorm) rule=grad_norm candidates=$batch kept=$((batch / 2)) ;;
  MaxLoss) rule=max_loss candidates=$batch kept=$((batch / 2)) ;;
  *) fail "METHOD is \"$method\"; there are Regular, GREATS, GradNorm and MaxLoss" ;;
esac
[ "$kept" -ge 1 ] || fail "$method keeps half of BATCH, so BATCH must be at least 2"
[ "$task" = mmlu ] || fail "TASK is \"$task\"; there is mmlu"
percentage=$(printf '%s' "$percent" | awk '/^[0-9]*\.?[0-9]+([eE]-?[0-9]+)?$/ && $1 > 0 && $1 <= 1 { printf "%.10g", $1 * 100 }')
[ -n "$percentage" ] || fail "PERCENT is \"$percent\", but must be a fraction above 0 and at most 1 (0.05 is 5 percent)"

exec greats train "$config" \
  method="$rule" batch="$candidates" keep="$kept" keep_fraction=null \
  data.sources="${TRAIN_DATA:-data/train/processed}" data.percentage="$percentage" \
  task.path="${MMLU_DATA:-data/eval/mmlu}" task.n_validation="$n_val" task.subject="${subject:-world_religions}" \
  model.source="$model" lora.alpha="$alpha" optimizer.learning_rate="$rate" \
  seed="${seed:-42}" accumulate="${accumulate:-1}" \
  "$@"
