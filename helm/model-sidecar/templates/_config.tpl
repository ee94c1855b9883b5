{{/* The sidecar's configuration: what `config` says, and the chart's addresses and folders where it says nothing. */}}

{{/* Fills a map with what it lacks; maps within maps likewise. `null` is something that is said. */}}
{{- define "model-sidecar.fill" -}}
{{- $into := .into -}}
{{- range $key, $value := .from -}}
{{- if not (hasKey $into $key) -}}
{{- $_ := set $into $key $value -}}
{{- else if and (kindIs "map" $value) (kindIs "map" (index $into $key)) -}}
{{- include "model-sidecar.fill" (dict "into" (index $into $key) "from" $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The whole configuration as YAML: `include "model-sidecar.config" . | fromYaml` is a dict. */}}
{{- define "model-sidecar.config" -}}
{{- $config := .Values.config | toJson | fromJson -}}
{{- include "model-sidecar.fill" (dict "into" $config "from" (include "model-sidecar.computed" . | fromYaml)) -}}
{{- toYaml $config -}}
{{- end -}}

{{/* What the chart says by itself. */}}
{{- define "model-sidecar.computed" -}}
{{- $admin := default dict (default dict .Values.config.gateway).admin -}}
gateway:
  grpc:
    address: 0.0.0.0:9000
    {{- include "model-sidecar.tls" . | nindent 4 }}
  http:
    address: 0.0.0.0:8080
    {{- include "model-sidecar.tls" . | nindent 4 }}
  health: 0.0.0.0:9001
  hooks: 0.0.0.0:9003
  {{- if not (or $admin.token $admin.token_file) }}
  admin:
    address: 127.0.0.1:9006
  {{- end }}
monitor:
  enabled: {{ .Values.monitor.enabled }}
  state_dir: /var/lib/model-sidecar
  socket: /run/model-sidecar/tap.sock
  pages: /run/model-sidecar/pages
  grpc: 127.0.0.1:9002
  {{- if .Values.monitor.enabled }}
  health: 0.0.0.0:9005
  {{- if .Values.monitor.http.enabled }}
  http: 0.0.0.0:9004
  {{- end }}
  {{- if .Values.store.postgresql.existingSecret }}
  store:
    url: ${MODEL_SIDECAR_STORE_URL}
  {{- end }}
  {{- end }}
{{- if eq (include "model-sidecar.metricsExporter" .) "prometheus" }}
telemetry:
  metrics:
    exporter: prometheus
  prometheus: 0.0.0.0:9464
{{- end }}
log:
  format: json
{{- end -}}

{{- define "model-sidecar.tls" -}}
{{- if .Values.tls.secretName -}}
tls:
  certificate: /etc/model-sidecar-tls/tls.crt
  key: /etc/model-sidecar-tls/tls.key
  {{- with .Values.tls.clientCa }}
  client_ca: /etc/model-sidecar-tls/{{ . }}
  {{- end }}
{{- end -}}
{{- end -}}

{{/* Where metrics go: `prometheus`, another exporter's name, or nothing. */}}
{{- define "model-sidecar.metricsExporter" -}}
{{- if .Values.monitor.enabled -}}
{{- $telemetry := default dict .Values.config.telemetry -}}
{{- $own := default dict $telemetry.metrics -}}
{{- $said := coalesce $own.exporter $telemetry.exporter (and (or $own.endpoint $telemetry.endpoint) "otlp") -}}
{{- if $said -}}
{{- $said -}}
{{- else if .Values.metrics.enabled -}}
prometheus
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The port of an address; empty for a unix socket, and for none. */}}
{{- define "model-sidecar.port" -}}
{{- if and (kindIs "string" .) (not (hasPrefix "unix:" .)) -}}
{{- regexFind "[0-9]+$" . -}}
{{- end -}}
{{- end -}}

{{/* Ports by their names in the pod, as YAML: those that are listened at on the pod's address. */}}
{{- define "model-sidecar.ports" -}}
{{- $config := include "model-sidecar.config" . | fromYaml -}}
{{- $gateway := $config.gateway -}}
{{- $monitor := $config.monitor -}}
grpc: {{ include "model-sidecar.port" $gateway.grpc.address }}
{{- with $gateway.http }}
http: {{ include "model-sidecar.port" .address }}
{{- end }}
health: {{ include "model-sidecar.port" $gateway.health }}
hooks: {{ include "model-sidecar.port" $gateway.hooks }}
{{- if .Values.monitor.enabled }}
{{- with $monitor.http }}
monitor-http: {{ include "model-sidecar.port" . }}
{{- end }}
monitor-health: {{ include "model-sidecar.port" $monitor.health }}
{{- if eq (include "model-sidecar.metricsExporter" .) "prometheus" }}
metrics: {{ include "model-sidecar.port" $config.telemetry.prometheus }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The actions on Kubernetes objects that the configuration names, as YAML: `actions: [{kind, namespace, name}]`. */}}
{{- define "model-sidecar.clusterActions" -}}
{{- $found := list -}}
{{- range .Values.config.models -}}
{{- $action := default dict (default dict .rollback).action -}}
{{- if has $action.kind (list "deployment" "argo" "kserve") -}}
{{- $found = append $found (pick $action "kind" "namespace" "name") -}}
{{- end -}}
{{- end -}}
{{- toYaml (dict "actions" (uniq $found)) -}}
{{- end -}}

{{/* Whether anything is compared, so that there is evidence to keep: `true` or nothing. */}}
{{- define "model-sidecar.judges" -}}
{{- if .Values.monitor.enabled -}}
{{- range .Values.config.models -}}
{{- range .variants -}}
{{- range .roles -}}
{{- if has . (list "reference" "mirror" "previous" "candidate") -}}true{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
