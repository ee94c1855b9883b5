{{/* Rules of the NetworkPolicy, and the ports that the configuration calls. */}}

{{/* One rule: `dict "from" PEERS "ports" NUMBERS`. Without a port that is listened at there is none; without peers it is about everybody. */}}
{{- define "model-sidecar.ingressRule" -}}
{{- with compact .ports }}
- ports:
    {{- range . }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
  {{- with $.from }}
  from:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The same for `dict "to" PEERS "ports" NUMBERS`. */}}
{{- define "model-sidecar.egressRule" -}}
{{- with compact .ports }}
- ports:
    {{- range . }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
  {{- with $.to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Ports outside of the pod that the configuration names, as YAML: `{telemetry: [], alerts: [], upstreams: []}`. */}}
{{- define "model-sidecar.egressPorts" -}}
{{- $config := include "model-sidecar.config" . | fromYaml -}}
{{- $telemetry := list -}}
{{- $alerts := list -}}
{{- $upstreams := list -}}
{{- if .Values.monitor.enabled -}}
{{- with $config.telemetry -}}
{{- $signals := list . .traces .metrics .logs -}}
{{- range compact $signals -}}
{{- $telemetry = append $telemetry (include "model-sidecar.urlPort" .endpoint) -}}
{{- end -}}
{{- end -}}
{{- range ((($config).alerts).channels) -}}
{{- if eq .kind "email" -}}
{{- $alerts = append $alerts (toString (int (default 587 .port))) -}}
{{- else if eq .kind "pagerduty" -}}
{{- $alerts = append $alerts (include "model-sidecar.urlPort" (default "https://events.pagerduty.com" .url)) -}}
{{- else if ne .kind "log" -}}
{{- $alerts = append $alerts (include "model-sidecar.urlPort" .url) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $config.models -}}
{{- $action := default dict (default dict .rollback).action -}}
{{- if and (eq (toString $action.kind) "webhook") $.Values.monitor.enabled -}}
{{- $alerts = append $alerts (include "model-sidecar.urlPort" $action.url) -}}
{{- end -}}
{{- range .variants -}}
{{- $runtime := default dict .runtime -}}
{{- if eq (toString $runtime.kind) "remote" -}}
{{- $upstreams = append $upstreams (include "model-sidecar.outsidePort" $runtime.address) -}}
{{- end -}}
{{- end -}}
{{- end -}}
telemetry: {{ compact $telemetry | uniq | toJson }}
alerts: {{ compact $alerts | uniq | toJson }}
upstreams: {{ compact $upstreams | uniq | toJson }}
{{- end -}}

{{/* The port of a URL outside of the pod; 443 for one that is a secret; empty for none. */}}
{{- define "model-sidecar.urlPort" -}}
{{- if kindIs "string" . -}}
{{- if hasPrefix "${" . -}}
443
{{- else if contains "://" . -}}
{{- $parts := urlParse . -}}
{{- if regexMatch ":[0-9]+$" $parts.host -}}
{{- include "model-sidecar.outsidePort" $parts.host -}}
{{- else if include "model-sidecar.outsidePort" (printf "%s:443" $parts.host) -}}
{{- ternary "80" "443" (eq $parts.scheme "http") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The port of `host:port`; empty where the host is the pod itself, or a Unix socket. */}}
{{- define "model-sidecar.outsidePort" -}}
{{- if and (kindIs "string" .) (not (regexMatch "^(unix:.*|(dns:/*)?(localhost|127\\..*|\\[::1\\]):[0-9]+)$" .)) -}}
{{- regexFind ":[0-9]+$" . | trimPrefix ":" -}}
{{- end -}}
{{- end -}}
