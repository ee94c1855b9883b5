{{/* What the pod may do: the account's rights, and devices. */}}

{{/* The actions that call Kubernetes, as a YAML list of `{kind, namespace, name}`: those of the configuration, and `rbac.actions` for a configuration that the chart cannot see. An action with a kubeconfig of its own has its rights elsewhere; one that is switched off never acts. */}}
{{- define "model-sidecar.actions" -}}
{{- $found := list -}}
{{- range ((.Values.config).models) -}}
{{- $rollback := default dict .rollback -}}
{{- $action := default dict $rollback.action -}}
{{- $kubernetes := default dict $action.kubernetes -}}
{{- $elsewhere := or $kubernetes.kubeconfig $kubernetes.context -}}
{{- $off := eq (toString $rollback.enabled) "false" -}}
{{- if and (has $action.kind (list "deployment" "argo" "kserve")) (not $elsewhere) (not $off) -}}
{{- $found = append $found (pick $action "kind" "namespace" "name") -}}
{{- end -}}
{{- end -}}
{{- if .Values.monitor.enabled -}}
{{- concat $found .Values.rbac.actions | uniq | toYaml -}}
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{/* `true` where the monitor needs the API server, so a token; else empty. */}}
{{- define "model-sidecar.callsKubernetes" -}}
{{- if include "model-sidecar.actions" . | fromYamlArray -}}
true
{{- end -}}
{{- end -}}

{{/* Rules of a Role for actions of one namespace: what sidecar/monitor/actions calls, and no more. */}}
{{- define "model-sidecar.actionRules" -}}
{{- $names := dict "deployment" list "argo" list "kserve" list -}}
{{- range . -}}
{{- $_ := set $names .kind (append (get $names .kind) .name | uniq | sortAlpha) -}}
{{- end -}}
{{- with $names.deployment }}
- apiGroups: [apps]
  resources: [deployments]
  resourceNames:
    {{- toYaml . | nindent 4 }}
  verbs: [get, patch]
# A list cannot be allowed by name.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [list]
{{- end }}
{{- with $names.argo }}
- apiGroups: [argoproj.io]
  resources: [rollouts]
  resourceNames:
    {{- toYaml . | nindent 4 }}
  verbs: [get]
- apiGroups: [argoproj.io]
  resources: [rollouts/status]
  resourceNames:
    {{- toYaml . | nindent 4 }}
  verbs: [patch]
{{- end }}
{{- with $names.kserve }}
- apiGroups: [serving.kserve.io]
  resources: [inferenceservices]
  resourceNames:
    {{- toYaml . | nindent 4 }}
  verbs: [get, patch]
{{- end }}
{{- end -}}

{{/* Of the Role and its binding. In another namespace two releases of one name must not meet, so the release's own is in it. */}}
{{- define "model-sidecar.roleName" -}}
{{- printf "%s-%s-rollback" .Release.Namespace (include "model-sidecar.fullname" .) | trunc 253 | trimSuffix "-" -}}
{{- end -}}

{{/* How many devices a container gets, of `dict "root" . "name" "monitor"`; empty: none. */}}
{{- define "model-sidecar.devices" -}}
{{- $gpu := .root.Values.gpu -}}
{{- $count := 0 -}}
{{- if eq .name (include "model-sidecar.gpuContainer" .root) }}{{ $count = int $gpu.count }}{{ end -}}
{{- if eq .name "monitor" }}{{ $count = add $count (int $gpu.monitorCount) }}{{ end -}}
{{- if gt (int $count) 0 -}}{{ $count }}{{- end -}}
{{- end -}}

{{/* `true` for a container of ours without a device in a pod that has some: where NVIDIA's runtime is the node's default, an image that asks for devices would see them all, and nobody has counted that. */}}
{{- define "model-sidecar.hidesDevices" -}}
{{- $gpu := .root.Values.gpu -}}
{{- if and (or $gpu.count $gpu.monitorCount) (not (include "model-sidecar.devices" .)) -}}true{{- end -}}
{{- end -}}
