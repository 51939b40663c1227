#!/bin/sh
# The rules of deploy/prometheus as PrometheusRules of the Prometheus Operator, one for each file:
#
#   deploy/kubernetes/alerts.sh | kubectl apply -n visiontower -f -
#
# They are the files themselves, indented: a PrometheusRule's spec is a file of rules.
set -eu
cd "$(dirname "$0")/../prometheus"

for file in $(grep -l '^groups:' -- *.yml); do
    cat <<MANIFEST
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: visiontower-${file%.yml}
  labels:
    app.kubernetes.io/name: visiontower
spec:
MANIFEST
    sed 's/^\(..*\)$/  \1/' "$file"
done
