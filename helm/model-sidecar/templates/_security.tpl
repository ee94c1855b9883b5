{{/*
What the pod may do, and who may do what to it: the account's rights, its token, devices.
*/}}

{{/*
The actions that call Kubernetes, as a YAML list of `{kind, namespace, name}`: those of the
configuration, and `rbac.actions` for a configuration that the chart cannot see. An action with a
kubeconfig of its own has its rights elsewhere; one that is switched off never acts.
*/}}
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
{{- end }}

{{/*
`true` where the monitor needs the API server, so a token; else empty.
*/}}
{{- define "model-sidecar.callsKubernetes" -}}
{{- if include "model-sidecar.actions" . | fromYamlArray -}}
true
{{- end -}}
{{- end }}

{{/*
Rules of a Role for actions of one namespace: what sidecar/monitor/actions calls, and no more.
*/}}
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
{{- end }}

{{/*
The account's token for the monitor alone: the pod itself mounts none, so that neither the gateway
nor the model container has one. A list of volumes; empty where nothing calls Kubernetes.
*/}}
{{- define "model-sidecar.tokenVolumes" -}}
{{- if include "model-sidecar.callsKubernetes" . }}
- name: kubernetes-token
  projected:
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: 3607
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
      - downwardAPI:
          items:
            - path: namespace
              fieldRef:
                fieldPath: metadata.namespace
{{- end }}
{{- end }}

{{/*
Where the monitor has it: a list of volume mounts, or empty.
*/}}
{{- define "model-sidecar.tokenMounts" -}}
{{- if include "model-sidecar.callsKubernetes" . }}
- name: kubernetes-token
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end }}
{{- end }}

{{/*
The name of the container that the devices go to.
*/}}
{{- define "model-sidecar.gpuContainer" -}}
{{- if .Values.gpu.container -}}
{{- .Values.gpu.container -}}
{{- else if .Values.model.image -}}
model
{{- else -}}
gateway
{{- end -}}
{{- end }}

{{/*
Resources of a container with its devices: `list . "gateway" .Values.gateway.resources`. A device's
request is its limit.
*/}}
{{- define "model-sidecar.resources" -}}
{{- $top := index . 0 -}}
{{- $container := index . 1 -}}
{{- $resources := deepCopy (default dict (index . 2)) -}}
{{- $gpu := $top.Values.gpu -}}
{{- $count := 0 -}}
{{- if eq $container (include "model-sidecar.gpuContainer" $top) -}}
{{- $count = int $gpu.count -}}
{{- end -}}
{{- if eq $container "monitor" -}}
{{- $count = int $gpu.monitorCount -}}
{{- end -}}
{{- if $count -}}
{{- $_ := set $resources "limits" (merge (dict $gpu.resource $count) (default dict $resources.limits)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}

{{/*
Variables of one of our containers that was given no device: `list . "monitor"`. Where NVIDIA's
runtime is the node's default it shows every device to a container whose image asks for them, and
nobody has counted that.
*/}}
{{- define "model-sidecar.gpuEnv" -}}
{{- $top := index . 0 -}}
{{- $container := index . 1 -}}
{{- $given := and (eq $container (include "model-sidecar.gpuContainer" $top)) (int $top.Values.gpu.count) -}}
{{- if and (eq $container "monitor") (int $top.Values.gpu.monitorCount) -}}
{{- $given = true -}}
{{- end -}}
{{- if not $given }}
- name: NVIDIA_VISIBLE_DEVICES
  value: void
{{- end }}
{{- end }}

{{/*
The pod's `topologySpreadConstraints`. By the template's hash, so that a rollout's new pods are
spread among themselves, and not around the old ones that are about to go.
*/}}
{{- define "model-sidecar.topologySpreadConstraints" -}}
{{- $top := . -}}
{{- with .Values.topologySpread }}
{{- if .enabled }}
{{- range .topologyKeys }}
- maxSkew: {{ $top.Values.topologySpread.maxSkew }}
  topologyKey: {{ . }}
  whenUnsatisfiable: {{ $top.Values.topologySpread.whenUnsatisfiable }}
  labelSelector:
    matchLabels:
      {{- include "model-sidecar.selectorLabels" $top | nindent 6 }}
  matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/*
Of the Role and its binding. In another namespace two releases of one name must not meet, so the
release's own is in it.
*/}}
{{- define "model-sidecar.roleName" -}}
{{- printf "%s-%s-rollback" .Release.Namespace (include "model-sidecar.fullname" .) | trunc 253 | trimSuffix "-" -}}
{{- end }}
