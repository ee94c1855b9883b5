{{/* The pod around the containers, and the pieces of it that another chart may take. */}}

{{/* Items of `volumes`. */}}
{{- define "model-sidecar.volumes" -}}
{{- $models := .Values.models -}}
{{- $limit := .Values.temporary.sizeLimit -}}
- name: sidecar-config
  configMap:
    name: {{ include "model-sidecar.configMapName" . }}
    items:
      - key: {{ .Values.configMap.key }}
        path: config.yaml
- name: sidecar-state
  {{- if .Values.store.persistence.enabled }}
  persistentVolumeClaim:
    claimName: {{ include "model-sidecar.claimName" . }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.store.sizeLimit }}
  {{- end }}
- name: sidecar-run
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.store.runSizeLimit }}
- name: sidecar-tmp-gateway
  emptyDir:
    sizeLimit: {{ $limit }}
{{- if .Values.monitor.enabled }}
- name: sidecar-tmp-monitor
  emptyDir:
    sizeLimit: {{ $limit }}
{{- end }}
{{- if .Values.sharedMemory.enabled }}
- name: sidecar-shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.sharedMemory.sizeLimit }}
{{- end }}
{{- with .Values.tls.secretName }}
- name: sidecar-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- if include "model-sidecar.callsKubernetes" . }}
- name: sidecar-token
  projected:
    defaultMode: 0440
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
{{- if eq $models.source "pvc" }}
- name: sidecar-models
  persistentVolumeClaim:
    claimName: {{ $models.pvc.claimName }}
    readOnly: true
{{- else if eq $models.source "image" }}
- name: sidecar-models
  image:
    reference: {{ $models.image.reference }}
    pullPolicy: {{ $models.image.pullPolicy }}
{{- else if eq $models.source "hostPath" }}
- name: sidecar-models
  hostPath:
    path: {{ $models.hostPath.path }}
    type: Directory
{{- else if eq $models.source "init" }}
- name: sidecar-models
  emptyDir:
    sizeLimit: {{ $models.init.sizeLimit }}
- name: sidecar-tmp-models
  emptyDir:
    sizeLimit: {{ $limit }}
{{- end }}
{{- end -}}

{{/* Annotations of the pod: they change with the configuration, so that pods are rolled with it. */}}
{{- define "model-sidecar.podAnnotations" -}}
{{- $own := dict -}}
{{- if not .Values.configMap.existing -}}
{{- $_ := set $own "checksum/config" (include "model-sidecar.config" . | sha256sum) -}}
{{- else if .Values.configMap.checksum -}}
{{- $_ := set $own "checksum/config" (toString .Values.configMap.checksum) -}}
{{- end -}}
{{- toYaml (merge $own .Values.podAnnotations .Values.commonAnnotations) -}}
{{- end -}}

{{/* Seconds until the pod is killed: the drain, then the monitor (8), then some more (7); and the model's own stop. */}}
{{- define "model-sidecar.terminationGracePeriodSeconds" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- include "model-sidecar.stopSeconds" (dict "root" . "margin" 7) -}}
{{- else -}}
{{- .Values.terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}

{{- define "model-sidecar.stopSeconds" -}}
{{- $drain := include "model-sidecar.drain" .root | fromYaml -}}
{{- $model := ternary .root.Values.model.stopSeconds 0 (not (empty .root.Values.model.image)) -}}
{{- add (ceil $drain.timeout_s) 8 .margin $model -}}
{{- end -}}

{{/* How the gateway drains, with the sidecar's own defaults, as YAML. */}}
{{- define "model-sidecar.drain" -}}
{{- $gateway := default dict .Values.config.gateway -}}
{{- $drain := default dict $gateway.drain -}}
delay_s: {{ ternary $drain.delay_s 5 (hasKey $drain "delay_s") }}
timeout_s: {{ ternary $drain.timeout_s 45 (hasKey $drain "timeout_s") }}
max_connection_age_s: {{ default 30 (default dict $gateway.grpc).max_connection_age_s }}
{{- end -}}

{{/* The model container. */}}
{{- define "model-sidecar.model" -}}
{{- $model := .Values.model -}}
- name: {{ $model.name }}
  image: {{ $model.image }}
  {{- range $key := list "command" "args" "ports" "env" "envFrom" "livenessProbe" "readinessProbe" "startupProbe" "securityContext" }}
  {{- with index $model $key }}
  {{ $key }}:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- with $model.pullPolicy }}
  imagePullPolicy: {{ . }}
  {{- end }}
  lifecycle:
    {{- if not $model.lifecycle.preStop }}
    {{- include "model-sidecar.modelLifecycle" . | nindent 4 }}
    {{- end }}
    {{- with $model.lifecycle }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  resources:
    {{- include "model-sidecar.resources" (dict "root" . "name" "model" "resources" $model.resources) | nindent 4 }}
  {{- $mounts := include "model-sidecar.modelVolumeMounts" . }}
  {{- if or (trim $mounts) $model.volumeMounts }}
  volumeMounts:
    {{- with trim $mounts }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with $model.volumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
{{- end -}}

{{/* `template` of the Deployment. */}}
{{- define "model-sidecar.podTemplate" -}}
{{- $values := .Values -}}
metadata:
  labels:
    {{- include "model-sidecar.podLabels" . | nindent 4 }}
  annotations:
    {{- include "model-sidecar.podAnnotations" . | nindent 4 }}
spec:
  serviceAccountName: {{ include "model-sidecar.serviceAccountName" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "model-sidecar.terminationGracePeriodSeconds" . }}
  {{- with $values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.podSecurityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- range $key := list "nodeSelector" "tolerations" "affinity" }}
  {{- with index $values $key }}
  {{ $key }}:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- range $key := list "runtimeClassName" "priorityClassName" }}
  {{- with index $values $key }}
  {{ $key }}: {{ . }}
  {{- end }}
  {{- end }}
  {{- include "model-sidecar.topologySpread" . | nindent 2 }}
  {{- $init := include "model-sidecar.initContainers" . | trim }}
  {{- if or $init $values.extraInitContainers }}
  initContainers:
    {{- with $values.extraInitContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with $init }}
    {{- . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    {{- if $values.model.image }}
    {{- include "model-sidecar.model" . | nindent 4 }}
    {{- end }}
    {{- with include "model-sidecar.containers" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with $values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "model-sidecar.volumes" . | nindent 4 }}
    {{- with $values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* Pods spread over nodes and zones. */}}
{{- define "model-sidecar.topologySpread" -}}
{{- $spread := .Values.topologySpread -}}
{{- if $spread.enabled -}}
topologySpreadConstraints:
  {{- range $spread.topologyKeys }}
  - topologyKey: {{ . }}
    maxSkew: {{ $spread.maxSkew }}
    whenUnsatisfiable: {{ $spread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "model-sidecar.selectorLabels" $ | nindent 8 }}
    # A rollout's new pods are spread among themselves, not around the old ones that go.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end -}}
{{- end -}}
