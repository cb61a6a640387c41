#!/usr/bin/env bash
# The search around the preset `device`: each setting varied by itself, on the clean protocol, three seeds each.
#   benchmarks/device_preset.sh RATINGS OUT
# Prints validation figures only; every run stays in OUT, and a search that was stopped goes on when called again.
set -euo pipefail
data=$1
out=$2
vary() {
    local name=$1
    shift
    echo "== $name"
    edge-fleet sweep --data "$data" --preset device --protocol clean --seeds 0,1,2 --out "$out/$name" "$@"
}
vary taste --set taste_recency=1.0,2.0,3.0,5.0 --set taste_strength=0.0,0.5,1.0,1.5
vary scale --set scale=0.03,0.1,0.3,1.0
vary negatives --set negatives=4,8,16
vary decay --set decay=0.0,0.03,0.1,0.3
vary item-step --set lr_eta=40.0,80.0,160.0
vary step --set lr=0.05,0.1,0.2
vary width --set dim=16,32,64
vary batch --set batch_size=64,256,1024
