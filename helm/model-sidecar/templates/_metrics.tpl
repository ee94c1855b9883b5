{{/* What Prometheus and Grafana get. */}}

{{/* `metadata` of an object with a namespace, labels and annotations of its own: `dict "root" . "at" VALUES`, with `suffix` and `annotations` if wanted. */}}
{{- define "model-sidecar.elsewhere" -}}
{{- $annotations := merge (dict) (default dict .at.annotations) (default dict .annotations) .root.Values.commonAnnotations -}}
name: {{ include "model-sidecar.suffixed" (dict "root" .root "suffix" (default "" .suffix)) }}
namespace: {{ default .root.Release.Namespace .at.namespace }}
labels:
  {{- merge (dict) .at.labels (include "model-sidecar.labels" .root | fromYaml) | toYaml | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* How an endpoint is scraped: `dict "root" . "at" VALUES`. The job is the release, as the rules expect it, and an instance the pod. */}}
{{- define "model-sidecar.scraped" -}}
path: /metrics
scheme: http
{{- with .at.interval }}
interval: {{ . }}
{{- end }}
{{- with .at.scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
relabelings:
  - targetLabel: job
    replacement: {{ include "model-sidecar.fullname" .root }}
  - sourceLabels: [__meta_kubernetes_pod_name]
    targetLabel: instance
  {{- with .at.relabelings }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .at.metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* How long nobody may lead before it is said: three leases, in which the next one should have begun, and a minute at least. What the chart cannot read (configMap.existing) has leases of ten seconds. */}}
{{- define "model-sidecar.leaderlessFor" -}}
{{- $monitor := default dict (include "model-sidecar.config" . | fromYaml).monitor -}}
{{- $lease := default 10 (default dict $monitor.store).lease_s -}}
{{- max 60 (mulf 3 $lease | ceil | int) }}s
{{- end -}}

{{/* A query about this release alone: every series of ours gets its namespace and job. `dict "root" . "expr" TEXT`. */}}
{{- define "model-sidecar.scoped" -}}
{{- $ours := printf "namespace=%q,job=%q" .root.Release.Namespace (include "model-sidecar.fullname" .root) -}}
{{- $name := "\\b((?:model_sidecar|rpc_server)[a-zA-Z0-9_:]*" -}}
{{- $expr := regexReplaceAll "\\bup\\{[^}]*\\}" .expr (printf "up{%s}" $ours) -}}
{{- $expr = regexReplaceAll (printf "%s)\\s*\\{" $name) $expr (printf "${1}{%s," $ours) -}}
{{- regexReplaceAll (printf "%s)([^a-zA-Z0-9_:{]|$)" $name) $expr (printf "${1}{%s}${2}" $ours) -}}
{{- end -}}
