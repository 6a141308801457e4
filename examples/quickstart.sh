#!/usr/bin/env bash
# The whole method, command by command, on the embedded world: edits, a token reward model, PPO, and
# a win rate. A few minutes on two cores. `python -m launch.pipeline` does the same for several arms
# and writes a report.
#
#   bash examples/quickstart.sh [FOLDER]        QUICK=1 makes a few updates only, to see the files
set -euo pipefail
RUN=${1:-runs/quickstart}
JUDGE=fgrlhf_jax.tiny_world.judge:judge
steps() { echo "--config.steps=$([ -n "${QUICK:-}" ] && echo "$1" || echo "$2")"; }

# 1. A policy: supervised fine-tuning on demonstrations by people who err.
#    Without a file the demonstrations are made, and kept in $RUN/sft/data.
python -m launch.sft --config.run_dir="$RUN/sft" "$(steps 8 1500)"

# 2. Edits: responses, each with its minimal edit. Here they are made, and kept in $RUN/rm/data;
#    on your own responses: launch.collect_edits (a language model) or launch.annotate (people).
# 3. A token reward model, from the edits (Equation 4).
python -m launch.train_rm --config.run_dir="$RUN/rm" "$(steps 8 250)"
python -m launch.edit_report --config.input="$RUN/rm/data/validation.jsonl"
python -m launch.score --config.reward_model="$RUN/rm" --config.input="$RUN/rm/data/test.jsonl" \
  --config.limit=20 --config.output="$RUN/scores.html" --config.overwrite

# 4. PPO with a reward for every token.
python -m launch.ppo --config.policy="$RUN/sft/export" --config.reward_model="$RUN/rm" \
  --config.prompts="$RUN/sft/data/train.jsonl" --config.validation="$RUN/sft/data/validation.jsonl" \
  --config.judge="$JUDGE" --config.run_dir="$RUN/ppo" "$(steps 2 60)"

# 5. Before and after, on prompts that no update has seen.
for model in sft ppo; do
  python -m launch.generate --config.model="$RUN/$model" --config.temperature=1 \
    --config.prompts="$RUN/sft/data/validation.jsonl" --config.output="$RUN/$model.json" \
    --config.overwrite ${QUICK:+--config.limit=40}
done
python -m launch.evaluate --config.outputs="$RUN/ppo.json" --config.reference="$RUN/sft.json" \
  --config.judge="$JUDGE" --config.output="$RUN/win_rate.json" --config.overwrite
